"""Robot policies: imitation from pictures, in a built-in world or in simulators."""

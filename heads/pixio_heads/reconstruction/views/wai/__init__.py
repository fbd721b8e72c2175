"""What MapAnything's own layout and data sets need beyond the layout of a scene."""

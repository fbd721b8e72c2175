"""Pictures of clouds and cameras."""

"""The heads that ship with pixio-lightning, one folder each.

They use only what `pixio_lightning` offers to every plug-in, and never each other.
"""

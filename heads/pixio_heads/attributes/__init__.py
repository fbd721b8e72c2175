"""What features tell of an image, attribute by attribute, and which token tells it."""

from pixio_heads.attributes.data import AttributeData
from pixio_heads.attributes.head import Attributes

__all__ = ["AttributeData", "Attributes"]

"""The head example: its data comes with it, so that recipes may call both by their class names."""

from pixio_example.data import ExampleData
from pixio_example.head import Example

__all__ = ["Example", "ExampleData"]

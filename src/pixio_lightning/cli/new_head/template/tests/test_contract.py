"""The contract that every head keeps: see `pixio_lightning.testing`."""

from pixio_lightning.testing import HeadContract


class TestExample(HeadContract):
    recipe = "example/demo"

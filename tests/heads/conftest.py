"""Which tests of the contract are quick ones."""

import pytest


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave it to one dense head and one global one to run on all kinds of backbones."""
    for item in items:
        parts = item.nodeid.split("::")
        if parts[-1].startswith("test_it_runs_on_every_kind_of_backbone"):
            all_kinds = parts[-2] in ("TestDepth", "TestClassification")
            if not all_kinds and item.name.endswith(("[mae]", "[dinov3]")):
                item.add_marker(pytest.mark.slow)

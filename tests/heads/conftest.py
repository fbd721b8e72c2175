"""Which tests of the contract are quick ones."""

from __future__ import annotations

import pytest

# What a test shows of the code that all heads share is shown quickly by these; what is different
# about them is here as well: a fit in closed form is one of all processes, a policy acts.
QUICK = {
    "test_two_processes_measure_what_one_does": ("TestDepth", "TestAttributes"),
    "test_an_interrupted_run_goes_on_to_the_same_end": ("TestDepth", "TestPolicy"),
}


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave it to one dense head and one global one to run on all kinds of backbones.

    To the others they are features of other sizes.
    """
    for item in items:
        parts = item.nodeid.split("::")
        if len(parts) > 2 and parts[-2] not in QUICK.get(parts[-1], parts[-2:]):
            item.add_marker(pytest.mark.slow)
        if parts[-1].startswith("test_it_runs_on_every_kind_of_backbone"):
            all_kinds = parts[-2] in ("TestDepth", "TestClassification")
            if not all_kinds and not item.name.endswith("[pixio]"):
                item.add_marker(pytest.mark.slow)

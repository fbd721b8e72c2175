"""Who calls the page by its API is told of a value of a wrong type in one line, without a trace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from pixio_lightning.cli.app.loaded import open_shipped
from pixio_lightning.cli.app.server import served


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Return a user of a page of the shipped weights."""
    with served([open_shipped("tiny")], host="127.0.0.1", port=0) as address:
        user = Client(address, verbose=False, httpx_kwargs={"timeout": 120})
        yield user
        user.close()


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (("much", 2, 0), "/reconstruct"),
        (([1], 2, 0), "/reconstruct"),
        ((5,), "/reconstruct_open"),
        (({"a": 1},), "/reconstruct_open"),
    ],
)
def test_a_value_of_a_wrong_type_is_one_line(
    values: tuple[object, ...], name: str, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AppError) as refused:
        client.predict(*values, api_name=name)
    assert str(refused.value) and "\n" not in str(refused.value)
    assert "show_error" not in str(refused.value)  # what Gradio says where it hides the cause
    said = capfd.readouterr()
    assert "Traceback" not in said.err + said.out

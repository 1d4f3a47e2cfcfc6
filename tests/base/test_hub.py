"""What is said where nothing of a name is here, and the Hub does not help."""

from __future__ import annotations

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

from cocomix import CocomixError
from cocomix.base.hub import download

ANSWER = httpx.Response(401, request=httpx.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (
            LocalEntryNotFoundError("Got: ConnectError: [Errno -2] Name or service not known"),
            "can't be reached for runs/x",
        ),
        (OfflineModeIsEnabled("offline"), "can't be reached for runs/x"),
        (RepositoryNotFoundError("401 Client Error", response=ANSWER), "has no runs/x, or shows it only after a login"),
        (ValueError("a wish of its own"), "did not give runs/x: a wish of its own"),
    ],
)
def test_a_missing_folder_is_a_missing_folder_first(
    error: Exception, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CocomixError) as raised:
        download("runs/x", "runs/x", ("*.json",))
    assert str(raised.value) == f"there is no folder or file runs/x here, and the Hugging Face Hub {end}"

import os

import pytest

from lab import missing, requirements


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "_system", lambda: ("root",))
    assert missing("no-such-command") == ["command 'no-such-command'", "root"]
    with pytest.raises(pytest.skip.Exception, match="needs command 'no-such-command', root"):
        requirements.require_netns("no-such-command")


def test_root_is_asked_for_before_anything_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert requirements._system.__wrapped__() == ("root",)


def test_nothing_missing_means_no_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "_system", tuple)
    monkeypatch.setattr(requirements, "COMMANDS", ("sh",))
    assert missing() == []
    requirements.require_netns()

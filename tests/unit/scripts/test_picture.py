"""The picture of the README: what is missing is said in one sentence."""

import pytest

from scripts import picture


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "run" / "trainer" / "report.html"
    path.parent.mkdir(parents=True)
    path.write_text("<h1>A report</h1>")
    return path


def browser(folder, body):
    """Put a browser of our own, and nothing else, into a folder of programs."""
    program = folder / "chromium"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


def test_browser_s_picture_is_kept(report, tmp_path, monkeypatch):
    """What the browser writes becomes the picture."""
    browser(tmp_path, 'for word; do case $word in --screenshot=*) echo shot > "${word#*=}";; esac; done')
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = tmp_path / "pictures" / "report.png"
    assert picture.main([str(tmp_path / "run"), "--picture", str(wanted)]) == 0
    assert wanted.read_text() == "shot\n"


def test_what_is_missing_is_one_sentence(report, tmp_path, monkeypatch, capsys):
    """No browser, no report, or a browser that fails: exit code 1, and an old picture stays."""
    monkeypatch.setenv("PATH", str(tmp_path))
    old = tmp_path / "old.png"
    old.write_text("old")
    assert picture.main([str(tmp_path / "run"), "--picture", str(old)]) == 1
    assert "no browser" in capsys.readouterr().err
    browser(tmp_path, "echo no display >&2")
    assert picture.main([str(tmp_path / "run"), "--picture", str(old)]) == 1
    assert "took no picture: no display" in capsys.readouterr().err
    assert picture.main([str(tmp_path / "nowhere"), "--picture", str(old)]) == 1
    assert "report.html is not there" in capsys.readouterr().err
    assert old.read_text() == "old"

"""What is missing on a bare machine is installed once, however many ask for it at once."""

import threading
from pathlib import Path

import packages
import pytest

APT_GET = """#!/bin/sh
# As apt-get: whoever comes while another is at work is sent away, as is who comes first, by somebody else's.
if [ ! -e "{folder}/somebody-else" ]; then touch "{folder}/somebody-else"; locked=1; fi
if [ -n "$locked" ] || ! mkdir "{folder}/lock" 2>/dev/null; then
  echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt-get)" >&2
  exit 100
fi
echo "$@" >>"{folder}/calls"
sleep 0.2
case "$*" in *install*) printf "#!/bin/sh\\n" >"{folder}/bin/made-up"; chmod 755 "{folder}/bin/made-up" ;; esac
rmdir "{folder}/lock"
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without the tool `made-up`, whose apt-get can bring it."""
    (tmp_path / "bin").mkdir()
    apt_get = tmp_path / "bin" / "apt-get"
    apt_get.write_text(APT_GET.format(folder=tmp_path))
    apt_get.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(packages, "POLICY", tmp_path / "policy-rc.d")
    monkeypatch.setattr(packages, "_privileges", list)
    monkeypatch.setitem(packages.TOOLS, "made-up", packages.Tool(("made-up",), "made-up-package", "made-up"))
    return tmp_path


def test_several_at_once_install_once(bare: Path) -> None:
    failures: list[BaseException] = []

    def require() -> None:
        try:
            packages.require(["made-up"], lambda line: None)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=require) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    calls = (bare / "calls").read_text().splitlines()
    assert [call.split()[3] for call in calls] == ["update", "install"]
    assert calls[1].endswith("made-up-package")
    assert not (bare / "policy-rc.d").exists()


def test_what_apt_get_says_is_passed_on(bare: Path) -> None:
    (bare / "bin" / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    with pytest.raises(packages.MissingSoftware, match="Unable to locate package"):
        packages.require(["made-up"], lambda line: None)

"""What the images and the compose file promise. Nothing here can build or run them: that needs Docker."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.config import Config

ROOT = Path(__file__).parent.parent

#: What bubblewrap needs that Docker's own profile does not give to containers without capabilities.
SANDBOXES_NEED = {"clone", "unshare", "mount", "umount2", "pivot_root"}

#: What leads out of containers, or has done so, and nothing of ours asks for.
DANGEROUS = {
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "perf_event_open", "bpf"),
    *("keyctl", "add_key", "request_key", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff"),
    *("open_by_handle_at", "name_to_handle_at", "setns", "chroot", "umount", "move_mount", "open_tree", "fsopen"),
    *("fsmount", "fsconfig", "fspick", "mount_setattr", "quotactl", "acct", "iopl", "ioperm", "modify_ldt"),
    *("settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname", "syslog"),
    *("personality", "vhangup", "lookup_dcookie", "fanotify_init", "memfd_secret", "shmget", "msgget", "semget"),
}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    profile = json.loads((ROOT / "deploy" / "seccomp.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    found: list[dict[str, Any]] = profile["syscalls"]
    return found


def _always(rules: list[dict[str, Any]]) -> set[str]:
    allowed = [rule for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule]
    return {name for rule in allowed for name in rule["names"]}


def test_the_service_of_kernels_has_no_secrets_no_privileges_and_no_way_out(services: dict[str, Any]) -> None:
    kernels = services["services"]["kernels"]
    assert not {"environment", "env_file", "volumes", "ports", "secrets", "privileged", "cap_add"} & set(kernels)
    assert kernels["networks"] == ["kernels"]
    assert services["networks"]["kernels"] == {"internal": True}
    assert (kernels["user"], kernels["read_only"], kernels["init"]) == ("10001", True, True)
    assert kernels["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in kernels["security_opt"]
    assert {"mem_limit", "pids_limit", "cpus"} <= set(kernels)


def test_its_profile_is_the_one_that_is_here(services: dict[str, Any]) -> None:
    [profile] = [option for option in services["services"]["kernels"]["security_opt"] if option.startswith("seccomp=")]
    assert (ROOT / profile.removeprefix("seccomp=")).is_file()


def test_the_proxy_finds_the_kernels_and_stays_unprivileged(services: dict[str, Any]) -> None:
    florette = services["services"]["florette"]
    assert "kernels" in florette["networks"]
    assert not {"privileged", "cap_add", "security_opt"} & set(florette)
    given = {
        "FLORETTE_KERNELS": florette["environment"]["FLORETTE_KERNELS"],
        "FLORETTE_UPSTREAM": "http://vllm:8000/v1",
    }
    settings = Config.load({}, None, given).kernels
    assert (settings.backend, settings.url) == ("gateway", "http://kernels:8888")


def test_the_profile_lets_sandboxes_be_made(rules: list[dict[str, Any]]) -> None:
    assert _always(rules) >= SANDBOXES_NEED
    # Without it Landlock and our own filter could not be laid upon kernels.
    assert _always(rules) >= {"seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"}


def test_the_profile_denies_what_nothing_of_ours_asks_for(rules: list[dict[str, Any]]) -> None:
    named = {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert not DANGEROUS & named
    [sockets] = [rule for rule in rules if "socket" in rule["names"]]
    assert sockets["args"] == [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]
    [clone3] = [rule for rule in rules if "clone3" in rule["names"]]
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def test_no_call_stands_in_the_profile_twice(rules: list[dict[str, Any]]) -> None:
    names = [name for rule in rules for name in rule["names"]]
    assert len(names) == len(set(names))


def test_each_target_of_the_compose_file_is_in_the_dockerfile(services: dict[str, Any]) -> None:
    text = (ROOT / "Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", text, re.MULTILINE)
    built = {name for _, name in stages}
    assert {services["services"][name]["build"]["target"] for name in ("florette", "kernels")} <= built
    # What is built by default is the proxy.
    assert stages[-1] == ("base", "florette")
    for name in ("florette", "kernels"):
        assert "\nUSER 10001\n" in text.split(f" AS {name}\n")[1].split("\nFROM ")[0]


def test_what_the_dockerfile_copies_goes_to_the_builder() -> None:
    admitted = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^(?:COPY|RUN) .*(?:\n    .*)*", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        for path in re.findall(r"--requirement (\S+)", line):
            assert path in admitted
            assert (ROOT / path).is_file()

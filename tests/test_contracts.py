"""Every backbone and every head keeps the contracts; `scripts/contracts_table.py` prints them."""

import functools
import importlib.util
import json
from pathlib import Path

import contracts
import head_contracts
import keras
import pytest
from conftest import slow_marks
from networks import NETWORKS

ROOT = Path(__file__).parents[1]


@functools.cache
def table():
    spec = importlib.util.spec_from_file_location("table", ROOT / "scripts/contracts_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def printed() -> dict:
    path = table().WORKS / f"{keras.backend.backend()}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def held(found: tuple[str, str], said: list | None) -> None:
    """What the page says has to be so: what it says works may not cease to, and what it says is
    refused or broken is to be printed again once it works.
    """
    state, why = found
    was, before = said or ("yes", "")
    if state == was == "fails":
        pytest.xfail(f"known: {why}")
    assert state == was or (said is None and state in ("no", "")), (
        f"{why or state}; the page says {was or 'nothing'!r} {before}: mend it, or print the page "
        "again by scripts/contracts_table.py"
    )


def cases():
    """By default the costly contracts are held against the small networks, and against the larger
    representatives on TensorFlow only, which compiles least. What is read off a graph is the same
    on every backend.
    """
    few = keras.backend.backend() != "tensorflow"
    for network in NETWORKS.values():
        for name in contracts.CONTRACTS:
            cheap = name in contracts.CHEAP
            slow = network.mark == "slow" or (network.mark == "big" and not cheap)
            slow = slow or (
                few
                and network.kind not in ("this package", "your own")
                and (name != "features" or network.mark == "big")
            )
            marks = pytest.mark.slow if slow else ()
            if network.kind == "keras.applications" and not slow:
                marks = slow_marks(network.name, NETWORKS)
            if network.mark != "slow" or cheap:
                yield pytest.param(network.name, name, id=f"{network.name}-{name}", marks=marks)


@pytest.mark.parametrize(("network", "contract"), list(cases()))
def test_every_backbone(network, contract):
    for package in NETWORKS[network].needs:
        pytest.importorskip(package)
    found = contracts.run(contract, contracts.trial(NETWORKS[network]))
    held(found, printed().get("networks", {}).get(network, {}).get(contract))


def head_cases():
    few = keras.backend.backend() != "tensorflow"
    for case in head_contracts.CASES.values():
        for shape in head_contracts.SHAPES:
            for name in head_contracts.CONTRACTS:
                slow = (few or case.kind != "head") and name not in ("learns", "file")
                marks = pytest.mark.slow if slow else ()
                yield pytest.param(
                    case.name, shape, name, id=f"{case.name}-{shape}-{name}", marks=marks
                )


@pytest.mark.parametrize(("case", "shape", "contract"), list(head_cases()))
def test_every_head(case, shape, contract):
    found = contracts.run(contract, head_contracts.trial(case, shape), head_contracts.CONTRACTS)
    held(found, printed().get("heads", {}).get(case, {}).get(shape, {}).get(contract))


def test_the_page_is_what_the_battery_gave():
    page = ROOT / "docs" / "works.md"
    assert page.read_text() == table().page(), "print it again: scripts/contracts_table.py --page"


def test_every_contract_and_network_is_on_the_page():
    for path in table().WORKS.glob("*.json"):
        found = json.loads(path.read_text())
        rows = {n.name for n in NETWORKS.values() if n.mark != "slow"}
        assert set(found["networks"]) == rows
        assert all(set(cells) == set(contracts.CONTRACTS) for cells in found["networks"].values())
        assert set(found["heads"]) == set(head_contracts.CASES)


def test_contracts_notice_what_is_broken(monkeypatch):
    subject = contracts.Trial(NETWORKS["sequential"])
    assert contracts.run("copy", subject)[0] == "yes"

    def broken(name):
        state, why = contracts.run(name, subject)
        assert state == "fails"
        return why

    monkeypatch.setattr(subject, "reference", lambda x: 1.1 * contracts.out(subject.base.model, x))
    assert "features differ by 0.09" in broken("features")
    monkeypatch.setattr(type(subject.base), "copy", lambda self: self)
    assert "shares variables" in broken("copy")
    monkeypatch.setattr(contracts, "backbone", lambda base, **options: base)
    assert "features are float32" in broken("bfloat16")
    assert "shared" in broken("one channel") or "takes" in broken("one channel")
    monkeypatch.setattr(contracts.ftk, "freeze", lambda *_, **__: None)
    assert contracts.run("freeze", subject)[0] == "yes"  # built frozen, so nothing is missed yet
    contracts.ftk.thaw(subject.model, contracts.select.backbone(), learning_rate=1e-2)
    assert "moved, and shall not: row/" in broken("freeze")
    monkeypatch.setattr(contracts.ftk, "load", lambda path, safe_mode: subject.model)
    monkeypatch.setattr(contracts.ftk.record, "read", lambda model: None)
    assert "there is no record" in broken("load")

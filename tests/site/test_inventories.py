"""Links to the official reference are read from the inventories of the sites."""

import json

import pytest
import sphobjinv

from pages import inventories


def write_inventory(folder, names):
    """An `objects.inv` as Sphinx writes it, of names and the paths of their pages."""
    inventory = sphobjinv.Inventory()
    inventory.project, inventory.version = "Flax", "1"
    for name, path in names.items():
        inventory.objects.append(
            sphobjinv.DataObjStr(
                name=name,
                domain="std" if name == "a heading" else "py",
                role="function",
                priority="1",
                uri=path,
                dispname="-",
            )
        )
    folder.mkdir()
    text = sphobjinv.compress(inventory.data_file(contract=True))
    sphobjinv.writebytes(folder / "objects.inv", text)
    return f"file://{folder}/"


@pytest.fixture
def renewed(tmp_path, monkeypatch):
    """The file after the command has read two sites."""
    by_hand = {
        "url": "",
        "from": "by hand",
        "names": {"flax.nnx.hidden": "https://x/y"},
    }
    file = tmp_path / "inventories.json"
    file.write_text(json.dumps({"by hand": by_hand, "gone": {"names": {}}}))
    flax = {
        "flax.nnx.jit": "api/transforms.html#flax.nnx.jit",
        "flax.nnx.optimizer.Optimizer": "api/optimizer.html#$",
        "flax.nnx.optimizer.Optimizer.update": "api/optimizer.html#$",
        "numpy.array": "other.html#$",
        "a heading": "guide.html#$",
    }
    linen = {"flax.linen.Dense": "layers.html#$", "flax.nnx.jit": "old.html#$"}
    sites = {
        "flax": (write_inventory(tmp_path / "flax", flax), ("flax.",)),
        "flax-linen": (write_inventory(tmp_path / "linen", linen), ("flax.",)),
    }
    monkeypatch.setattr(inventories, "FILE", file)
    monkeypatch.setattr(inventories, "SITES", sites)
    inventories.renew()
    inventories.links.cache_clear()
    yield json.loads(file.read_text()), {name: url for name, (url, _) in sites.items()}
    inventories.links.cache_clear()


def test_the_command_keeps_the_names_of_each_site(renewed):
    content, urls = renewed
    assert set(content) == {"by hand", "flax", "flax-linen"}
    assert content["by hand"]["names"] == {"flax.nnx.hidden": "https://x/y"}
    assert set(content["flax"]["names"]) == {
        "flax.nnx.jit",
        "flax.nnx.optimizer.Optimizer",
        "flax.nnx.optimizer.Optimizer.update",
    }
    assert content["flax"]["url"] == urls["flax"]
    assert content["flax"]["from"].startswith("objects.inv of Flax, read on 20")


def test_links_of_a_name(renewed):
    _, urls = renewed
    links = inventories.links()
    assert links["flax.nnx.jit"] == f"{urls['flax']}api/transforms.html#flax.nnx.jit"
    optimizer = f"{urls['flax']}api/optimizer.html#flax.nnx.optimizer.Optimizer"
    assert links["flax.nnx.Optimizer"] == optimizer  # by its public name
    assert links["flax.nnx.Optimizer.update"] == f"{optimizer}.update"
    assert links["flax.nnx.hidden"] == "https://x/y"
    assert links["flax.linen.Dense"].endswith("/linen/layers.html#flax.linen.Dense")
    for unknown in ("flax.nnx.update", "flax.linen.Optimizer", "numpy.array", "flax"):
        assert unknown not in links


def test_a_site_that_cannot_be_read_leaves_the_file(renewed, tmp_path, monkeypatch):
    before = inventories.FILE.read_text()
    nowhere = {"flax": (f"file://{tmp_path}/nowhere/", ("flax.",))}
    monkeypatch.setattr(inventories, "SITES", nowhere)
    with pytest.raises(OSError, match="nowhere"):
        inventories.renew()
    assert inventories.FILE.read_text() == before


def test_the_committed_file_has_the_sites_of_the_command():
    content = json.loads(inventories.FILE.read_text())
    assert [*content] == [inventories.BY_HAND, *inventories.SITES]
    for site, (url, starts) in inventories.SITES.items():
        assert content[site]["url"] == url
        assert content[site]["names"]
        assert all(name.startswith(starts) for name in content[site]["names"])

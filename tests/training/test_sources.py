"""Parquet, npz, IDX and image folders: read as their own libraries read them, or refused with the place."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import struct
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_iris

from dropserve.errors import DataError, RecipeError
from dropserve.model import build_served
from dropserve.store import Store
from dropserve.training.data import Dataset, load_dataset
from dropserve.training.idx import read_file
from dropserve.training.recipe_file import RecipeFile, check_recipe
from dropserve.training.run import prepare, train


def dataset(recipe: dict[str, Any], folder: Path, data: dict[str, Any], **keys: Any) -> Dataset:
    return load_dataset(check_recipe(recipe | {"data": data} | keys, folder / "recipe.toml"), folder)


def refused(recipe: dict[str, Any], folder: Path, data: dict[str, Any], **keys: Any) -> str:
    with pytest.raises((DataError, RecipeError)) as caught:
        dataset(recipe, folder, data, **keys)
    return str(caught.value)


def write_idx(path: Path, array: np.ndarray) -> bytes:
    """As the format's page says."""
    codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    big = array.astype(array.dtype.newbyteorder(">"))
    head = struct.pack(f">HBB{array.ndim}I", 0, codes[array.dtype.str[1:]], array.ndim, *array.shape)
    content = head + big.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path.read_bytes()


DIGITS: Any = load_digits()
PIXELS = (DIGITS.images * 15).astype(np.uint8)


@pytest.fixture
def mlp(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe whose model takes 64 pixels."""
    recipe["model"]["arguments"] |= {"inputs": 64, "outputs": 10}
    recipe["training"]["epochs"] = 2
    return recipe


class TestParquet:
    DATA: ClassVar = {"source": "parquet", "file": "rows.parquet", "target": "kind"}

    def frame(self) -> pd.DataFrame:
        iris: Any = load_iris()
        frame = pd.DataFrame(iris.data, columns=["a", "b", "c", "d"])
        return frame.assign(kind=[iris.target_names[number] for number in iris.target])

    def test_the_same_rows_as_csv_give_the_same_table(self, recipe: dict[str, Any], tmp_path: Path) -> None:
        self.frame().to_parquet(tmp_path / "rows.parquet")
        self.frame().to_csv(tmp_path / "rows.csv", index=False)
        first = dataset(recipe, tmp_path, self.DATA)
        second = dataset(recipe, tmp_path, self.DATA | {"source": "csv", "file": "rows.csv"})
        assert first.table.sha256 == second.table.sha256
        assert first.split.sha256 == second.split.sha256

    def test_columns_of_every_numeric_type_in_the_order_asked_for(
        self, recipe: dict[str, Any], tmp_path: Path
    ) -> None:
        frame = self.frame().assign(
            flag=lambda f: f.a > 5,
            small=lambda f: f.b.astype("int8"),
            big=lambda f: f.a.round().astype("Int64"),
            kind=lambda f: pd.Categorical(f.kind),
        )
        frame.to_parquet(tmp_path / "rows.parquet")
        table = dataset(recipe, tmp_path, self.DATA | {"features": ["small", "flag", "big"]}).table
        expected = frame[["small", "flag", "big"]].to_numpy(np.float32)
        np.testing.assert_array_equal(table.features, expected)
        regression = dataset(
            recipe, tmp_path, self.DATA | {"target": "d", "features": ["b"]}, task="regression"
        )
        np.testing.assert_array_equal(regression.table.target, frame["d"].to_numpy(np.float32))

    @pytest.mark.parametrize(
        ("change", "data", "expected"),
        [
            ({"a": [None] + [1.0] * 149}, {}, "row 1, column 'a': the value is missing"),
            ({"kind": ["x", None] + ["y"] * 148}, {}, "row 2, column 'kind': the class is missing"),
            ({"a": [b"x"] * 150}, {}, "column 'a' holds object, such as b'x', not numbers"),
            ({"a": ["x", None] * 75}, {}, "row 2, column 'a': the category is missing"),
            ({}, {"categorical": ["z"]}, "no column 'z' (data.categorical)"),
            ({"a": [1e60] * 150}, {}, "row 1, column 'a': 1e+60 is not finite in 32 bits"),
            ({}, {"target": "kin"}, "no column 'kin' (data.target) (did you mean 'kind'?)"),
            ({}, {"features": ["e"]}, "no column 'e' (data.features)"),
            ({}, {"features": ["kind"]}, "data.features: holds the target 'kind'"),
            ({}, {"file": "no.parquet"}, "there is no file"),
        ],
    )
    def test_what_cannot_be_learned_from_is_named(
        self,
        recipe: dict[str, Any],
        tmp_path: Path,
        change: dict[str, Any],
        data: dict[str, Any],
        expected: str,
    ) -> None:
        self.frame().assign(**change).to_parquet(tmp_path / "rows.parquet")
        assert expected in refused(recipe, tmp_path, self.DATA | data)

    def test_booleans_with_gaps_and_labels_of_bytes(self, recipe: dict[str, Any], tmp_path: Path) -> None:
        flags = pd.array(([True, False, None] * 50), dtype="boolean")
        kinds = [kind.encode() for kind in self.frame().kind]
        self.frame().assign(a=flags, kind=kinds).to_parquet(tmp_path / "rows.parquet")
        found = dataset(recipe, tmp_path, self.DATA | {"impute_categories": "missing"})
        assert found.preprocessing.columns["input"][0].categories == ("false", "true", "missing")
        assert found.table.labels == ("setosa", "versicolor", "virginica")
        assert found.table.features[:3, 0].tolist()[:2] == [1, 0]

    def test_columns_that_32_bits_cannot_tell_apart(self, recipe: dict[str, Any], tmp_path: Path) -> None:
        times = 1_700_000_000_000 + 1000 * np.arange(150)[::-1]
        self.frame().assign(a=times).to_parquet(tmp_path / "rows.parquet")
        assert "column 'a': 150 different values become 2 in 32 bits" in refused(recipe, tmp_path, self.DATA)

    def test_a_file_that_is_none(self, recipe: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "rows.parquet").write_bytes(b"a,b\n1,2\n")
        assert "not a Parquet file" in refused(recipe, tmp_path, self.DATA)


class TestNpz:
    DATA: ClassVar = {"source": "npz", "file": "rows.npz"}

    def test_a_run_from_arrays_of_any_shape(self, mlp: dict[str, Any], tmp_path: Path) -> None:
        np.savez(tmp_path / "rows.npz", pictures=PIXELS, names=np.array([f"d{n}" for n in DIGITS.target]))
        data = self.DATA | {"features": "pictures", "target": "names"}
        assert dataset(mlp, tmp_path, data).table.features.shape == (1797, 8, 8)
        content = mlp | {"data": data | {"shape": [64], "scaling": "global"}}
        file = RecipeFile(tmp_path / "recipe.toml", check_recipe(content, tmp_path / "recipe.toml"))
        run, _ = train(prepare(file), Store(tmp_path / "store"))
        assert run.manifest.labels == tuple(f"d{n}" for n in range(10))
        assert run.manifest.signature.inputs[0].shape == (64,)
        with torch.no_grad():
            logits = build_served(run)(torch.from_numpy(PIXELS.reshape(-1, 64).astype(np.float32)))
        assert (logits.argmax(1).numpy() == DIGITS.target).mean() > 0.5, "of ten classes"

    @pytest.mark.parametrize(
        ("arrays", "data", "expected"),
        [
            ({"x": np.ones((9, 2)), "z": np.ones(9)}, {}, "no array 'y'; its arrays: x, z"),
            (
                {"x": np.ones((9, 2)), "y": np.ones(8)},
                {},
                "features [9, 2], target [8]; expected as many rows",
            ),
            ({"x": np.ones((9, 2)), "y": np.ones((9, 2))}, {}, "target is [9, 2]; expected one value"),
            ({"x": np.ones((9, 0)), "y": np.ones(9)}, {}, "a row holds no number"),
            (
                {"x": np.full((9, 2), "a"), "y": np.ones(9)},
                {},
                "the features are of type <U1; expected numbers",
            ),
            ({"x": np.ones((9, 2)), "y": np.full(9, 1j)}, {}, "the target is of type complex128"),
            (
                {"x": np.array([[1, np.nan], [1, 1]]), "y": np.ones(2)},
                {},
                "1 values that are missing or not finite in 32 bits, the first at [0, 1] (nan)",
            ),
            ({"x": np.ones((9, 4)), "y": np.ones(9)}, {"shape": [3]}, "data.shape is [3], 3 numbers"),
            ({"x": np.ones((3, 1)), "y": np.array(["a", " na", "b"])}, {}, "the first at [1]; fill them in"),
            ({"x": np.ones((3, 1)), "y": np.array([b"yes", b"Yes", b"no"])}, {}, "'Yes' and 'yes'"),
            (
                {
                    "x": np.ones((300, 2, 2)) * (1.7e12 + 1000 * np.arange(300)[:, None, None]),
                    "y": np.ones(300),
                },
                {},
                "the features at [0, 0] of a row: 300 different values become 3 in 32 bits",
            ),
            ({"x": np.array([[{}]]), "y": np.ones(1)}, {}, "plain arrays"),
        ],
    )
    def test_what_cannot_be_learned_from_is_named(
        self,
        recipe: dict[str, Any],
        tmp_path: Path,
        arrays: dict[str, Any],
        data: dict[str, Any],
        expected: str,
    ) -> None:
        np.savez(tmp_path / "rows.npz", **arrays)
        assert expected in refused(recipe, tmp_path, self.DATA | data)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"text"])
    def test_a_file_that_is_none(self, recipe: dict[str, Any], tmp_path: Path, content: bytes) -> None:
        (tmp_path / "rows.npz").write_bytes(content)
        assert "plain arrays" in refused(recipe, tmp_path, self.DATA)


class TestIdx:
    DATA: ClassVar = {"source": "idx", "folder": ".", "features": "images", "target": "labels"}

    @pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_what_is_written_is_read(self, tmp_path: Path, dtype: str, suffix: str) -> None:
        array = np.arange(-30, 30).astype(dtype).reshape(3, 4, 5)
        write_idx(tmp_path / f"file{suffix}", array)
        got = read_file(tmp_path / f"file{suffix}")
        np.testing.assert_array_equal(got, array)
        assert got.dtype == array.dtype

    def test_images_get_a_channel_and_a_test_file_is_the_test_part(
        self, recipe: dict[str, Any], tmp_path: Path
    ) -> None:
        write_idx(tmp_path / "images.gz", PIXELS[:1500])
        write_idx(tmp_path / "labels", DIGITS.target[:1500].astype("u1"))
        write_idx(tmp_path / "t-images", PIXELS[1500:])
        write_idx(tmp_path / "t-labels", DIGITS.target[1500:].astype("u1"))
        data = self.DATA | {"test_features": "t-images", "test_target": "t-labels"}
        got = dataset(recipe, tmp_path, data)
        np.testing.assert_array_equal(got.table.features, PIXELS[:, None].astype(np.float32))
        assert got.table.labels == tuple("0123456789")
        assert got.split.test.tolist() == list(range(1500, 1797))
        assert len(got.split.validation) == 225, "15% of the rest"
        assert sorted([*got.split.train, *got.split.validation]) == list(range(1500))
        assert len(set(got.preprocessing.inputs["input"].scale)) == 1, "one scale for all pixels"

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", "not an IDX file (it begins with nothing)"),
            (b"\x89PNG", "not an IDX file (it begins with 89 50 4e 47)"),
            (b"\0\0\x08\x02\0\0", "announces 2 axes"),
            (b"\0\0\x08\x01\0\0\0\x05abc", "11 bytes, but its head announces 13 bytes, [5]; it is cut off"),
            (b"\x1f\x8b\x08\0", "cannot be read"),
        ],
    )
    def test_a_damaged_file_is_named(
        self, recipe: dict[str, Any], tmp_path: Path, content: bytes, expected: str
    ) -> None:
        (tmp_path / "images").write_bytes(content)
        assert expected in refused(recipe, tmp_path, self.DATA)
        (tmp_path / "images").unlink()
        assert "no file images, nor images.gz" in refused(recipe, tmp_path, self.DATA)

    @pytest.fixture
    def served(self, tmp_path: Path) -> Generator[tuple[str, list[str]]]:
        """A server of the folder ``remote``, and what it was asked for."""
        (tmp_path / "remote").mkdir()
        asked: list[str] = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(tmp_path / "remote"))

            def log_message(self, *_: Any) -> None:
                asked.append(self.path)

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}", asked
            server.shutdown()

    def test_files_are_fetched_once_and_their_hashes_hold(
        self, recipe: dict[str, Any], tmp_path: Path, served: tuple[str, list[str]]
    ) -> None:
        url, asked = served
        contents = {
            "images": write_idx(tmp_path / "remote/images", PIXELS),
            "labels": write_idx(tmp_path / "remote/labels", DIGITS.target.astype("u1")),
        }
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        data = self.DATA | {"folder": "here", "url": url, "sha256": hashes}
        for _ in range(2):
            assert len(dataset(recipe, tmp_path, data).table) == 1797
        assert asked == ["/images", "/labels"]
        assert "data.sha256: no hash of labels" in refused(
            recipe, tmp_path, data | {"sha256": {"images": hashes["images"]}}
        )
        wrong = data | {"sha256": hashes | {"labels": "0" * 64}, "folder": "there"}
        assert "what came is not what data.sha256 expects for labels" in refused(recipe, tmp_path, wrong)
        assert [path.name for path in (tmp_path / "there").iterdir()] == ["images"]
        absent = data | {"features": "no", "sha256": hashes | {"no": "0" * 64}}
        assert "/no: cannot be fetched into" in refused(recipe, tmp_path, absent)
        local = {"folder": "here", "sha256": {"images": "0" * 64}}
        assert "data.sha256 says 0000" in refused(recipe, tmp_path, self.DATA | local)


class TestImages:
    DATA: ClassVar = {"source": "images", "folder": "pictures", "size": [8, 8], "colour": "grey"}

    def write(self, root: Path, rows: range) -> list[np.ndarray]:
        for row in rows:
            folder = root / str(DIGITS.target[row])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(PIXELS[row]).save(folder / f"{row:04}.png")
        order = sorted(rows, key=lambda row: (DIGITS.target[row], row))
        return [PIXELS[row] for row in order]

    def test_pixels_are_those_of_the_files_and_classes_those_of_the_folders(
        self, recipe: dict[str, Any], tmp_path: Path
    ) -> None:
        expected = self.write(tmp_path / "pictures", range(300))
        (tmp_path / "pictures/3/notes.txt").write_text("no image")
        (tmp_path / "pictures/.cache").mkdir()
        table = dataset(recipe, tmp_path, self.DATA).table
        np.testing.assert_array_equal(table.features, np.array(expected, np.float32)[:, None])
        np.testing.assert_array_equal(np.bincount(table.target), np.bincount(DIGITS.target[:300]))
        assert table.labels == tuple("0123456789")

    def test_parts_by_folder(self, recipe: dict[str, Any], tmp_path: Path) -> None:
        self.write(tmp_path / "pictures/train", range(200))
        self.write(tmp_path / "pictures/test", range(200, 260))
        got = dataset(recipe, tmp_path, self.DATA | {"parts": "folders"})
        assert [len(part) for part in (got.split.train, got.split.validation, got.split.test)] == [
            170,
            30,
            60,
        ]
        self.write(tmp_path / "pictures/val", range(260, 300))
        got = dataset(recipe, tmp_path, self.DATA | {"parts": "folders"})
        assert [len(part) for part in (got.split.train, got.split.validation, got.split.test)] == [
            200,
            40,
            60,
        ]
        assert "no folder train" in refused(
            recipe, tmp_path, self.DATA | {"parts": "folders", "folder": "pictures/train"}
        )

    def test_colour_size_and_the_turn_of_the_camera(self, recipe: dict[str, Any], tmp_path: Path) -> None:
        for label, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
            (tmp_path / "pictures" / label).mkdir(parents=True)
            for number in range(10):
                image = Image.new("RGB", (6, 4), colour)
                image.putpixel((0, 0), (255, 255, 255))
                exif = Image.Exif()
                exif[0x0112] = 6  # to be turned by 90 degrees: the first pixel belongs at the upper right
                image.save(tmp_path / "pictures" / label / f"{number}.png", exif=exif)
        table = dataset(
            recipe,
            tmp_path,
            self.DATA | {"size": [6, 4], "colour": "rgb"},
            split={"validation": 0.2, "test": 0.2},
        ).table
        assert table.features.shape == (20, 3, 6, 4)
        assert table.features[0, :, 0, 3].tolist() == [255, 255, 255]
        assert table.features[0, :, 3, 1].tolist() == [0, 0, 200]
        assert table.features[-1, :, 3, 1].tolist() == [200, 0, 0]

    def icons(self, folder: Path, colour: tuple[int, int, int]) -> None:
        """Shapes that are in the alpha alone: the colour is the same where nothing is seen."""
        for label in ("disc", "square"):
            (folder / label).mkdir(parents=True)
            for number in range(12):
                image = Image.new("RGBA", (8, 8), (*colour, 0))
                side = 3 + number % 3
                image.paste((*colour, 255), (0, 0, side, side))
                if label == "disc":
                    image.putpixel((0, 0), (*colour, 0))
                image.save(folder / label / f"{number}.png")

    def test_transparent_pixels_show_the_background(self, recipe: dict[str, Any], tmp_path: Path) -> None:
        self.icons(tmp_path / "pictures", (0, 0, 0))
        split = {"validation": 0.2, "test": 0.2}
        on_white = dataset(recipe, tmp_path, self.DATA, split=split).table
        assert on_white.features[:, 0, 0, 0].tolist() == [255.0] * 12 + [0.0] * 12
        on_red = dataset(
            recipe, tmp_path, self.DATA | {"background": [255, 0, 0], "colour": "rgb"}, split=split
        )
        assert on_red.table.features[0, :, 0, 0].tolist() == [255, 0, 0]
        black = self.DATA | {"background": "black"}
        said = refused(recipe, tmp_path, black, split=split)
        assert "every value of every row is 0 (14 training rows), so nothing can be learned" in said
        assert "data.background" in said
        for wrong in ("green", [1, 2], [0, 0, 256]):
            assert 'allowed: "white", "black" or [red, green, blue], each 0 to 255' in refused(
                recipe, tmp_path, self.DATA | {"background": wrong}
            )

    def test_one_image_again_and_again_is_refused(self, recipe: dict[str, Any], tmp_path: Path) -> None:
        for label in "ab":
            (tmp_path / "pictures" / label).mkdir(parents=True)
            for number in range(12):
                image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
                image.save(tmp_path / "pictures" / label / f"{number}.png")
        said = refused(recipe, tmp_path, self.DATA, split={"validation": 0.2, "test": 0.2})
        assert "all rows are the same (14 training rows), so nothing can be learned" in said

    def test_what_is_no_image_is_named(self, recipe: dict[str, Any], tmp_path: Path) -> None:
        assert "there is no folder" in refused(recipe, tmp_path, self.DATA)
        (tmp_path / "pictures/1").mkdir(parents=True)
        assert "no images; expected a folder for each class" in refused(recipe, tmp_path, self.DATA)
        bad = tmp_path / "pictures/1/bad.png"
        bad.write_bytes(b"\x89PNG\r\n\x1a\n")
        assert f"{bad}: cannot be read as an image" in refused(recipe, tmp_path, self.DATA)
        Image.new("I;16", (4, 4)).save(bad)
        assert "bad.png: has 16 bits a channel; expected 8" in refused(recipe, tmp_path, self.DATA)
        assert "task: got 'regression'" in refused(recipe, tmp_path, self.DATA, task="regression")
        assert "data.size" in refused(recipe, tmp_path, self.DATA | {"size": [8]})

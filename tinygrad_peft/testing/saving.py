"""The promises about settings and weights on disk."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tinygrad_peft.arrays import AnyArray
from tinygrad_peft.errors import CheckpointError, ConfigError, listed
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import (
    PREFIX,
    PeftModel,
    config_from_dict,
    config_to_dict,
    inspect_path,
)
from tinygrad_peft.testing.case import Case
from tinygrad_peft.testing.expect import Snapshot, expect, expect_same
from tinygrad_peft.testing.settings import MethodSettings

__all__ = ["SavingPromises"]


class SavingPromises(MethodSettings):
    """Settings as JSON, weights as safetensors, and nothing lost, added or shared on the way."""

    def test_its_settings_survive_json(self, case: Case) -> None:
        """Settings read from JSON equal those written."""
        written = json.loads(json.dumps(config_to_dict(case.config)))
        read = config_from_dict(type(case.config), written)
        expect(read == case.config, f"{case}: expected {case.config} from JSON, got {read}")

    def test_an_unknown_setting_is_refused(self, case: Case) -> None:
        """An unknown key, or a value of a wrong type, is an error that names the key."""
        known = config_to_dict(case.config)
        for key, value in {"no_such_setting": 1, "modules_to_save": 1}.items():
            try:
                read = config_from_dict(type(case.config), known | {key: value})
            except ConfigError as error:
                expect(key in str(error), f"{case}: {key} = {value} is refused unnamed: {error}")
            else:
                raise AssertionError(f"{case}: expected {key} = {value} to be refused, got {read}")

    def test_a_saved_adapter_gives_identical_logits(self, case: Case, tmp_path: Path) -> None:
        """Loaded onto another copy of the base, it has the same recipe and the same output."""
        peft = case.trained()
        peft.save_pretrained(tmp_path)
        loaded = case.load(tmp_path)
        expect(
            loaded.recipe == peft.recipe,
            f"{case}: expected to load the recipe {peft.recipe}, got {loaded.recipe}",
        )
        expect_same(case.logits(loaded), case.logits(peft), f"{case}: logits, saved and loaded")

    def test_its_files_have_the_usual_names(self, case: Case, tmp_path: Path) -> None:
        """PEFT's names of both files, and its prefix of tensors unless the format has another."""
        case.trained().save_pretrained(tmp_path)
        names = {file.name for file in tmp_path.rglob("*") if file.is_file()}
        wanted = {"adapter_config.json", *(["adapter_model.safetensors"] if self.trains else [])}
        missing = wanted - names
        expect(not missing, f"{case}: expected {', '.join(sorted(missing))}, got {sorted(names)}")
        if case.config.file_format.prefix == PREFIX:
            stored = [load_file(file) for file in tmp_path.rglob("adapter_model.safetensors")]
            wrong = [n for names in stored for n in names if not n.startswith("base_model.")]
            expect(not wrong, f"{case}: expected tensors named base_model..., got {wrong}")

    def test_inspect_finds_nothing_wrong_with_what_is_saved(
        self, case: Case, tmp_path: Path
    ) -> None:
        """A report lists no problem: held against the base, or against the settings alone."""
        case.trained().save_pretrained(tmp_path)
        _expect_sound(case, tmp_path, case.shape, "on the base")
        usual = {"adapter_config.json", "adapter_model.safetensors", "recipe.json"}
        if {file.name for file in tmp_path.iterdir()} == usual:
            (tmp_path / "recipe.json").unlink()  # it describes the base
            _expect_sound(case, tmp_path, None, "by its settings")

    def test_a_missing_extra_or_misshapen_tensor_is_refused(
        self, case: Case, tmp_path: Path
    ) -> None:
        """Each tensor is needed, no other is taken, and a refusal leaves the base alone."""
        case.trained().save_pretrained(tmp_path)
        stored = {file: load_file(file) for file in sorted(tmp_path.rglob("*.safetensors"))}
        expect(
            not self.trains or any(stored.values()),
            f"{case}: no tensor is saved, so none would be missed",
        )
        for file, tensors in stored.items():
            for how, name, changed in _changes(tensors):
                save_file(changed, file)
                _expect_refused(case, tmp_path, name, f"a folder {how} {name}")
            save_file(tensors, file)

    def test_what_is_saved_is_independent_of_the_model(self, case: Case, tmp_path: Path) -> None:
        """Only JSON and safetensors are written; later changes reach neither files nor models."""
        peft = case.trained()
        logits = case.logits(peft)
        peft.save_pretrained(tmp_path)
        kinds = {file.suffix for file in tmp_path.rglob("*") if file.is_file()}
        expect(kinds <= {".json", ".safetensors"}, f"{case} saves files of kind {sorted(kinds)}")
        _change(case.load(tmp_path))
        what = f"{case}: logits of the model that was saved, after one that was loaded has changed"
        expect_same(case.logits(peft), logits, what)
        _change(peft)
        what = f"{case}: logits, loaded after the model that was saved has changed"
        expect_same(case.logits(case.load(tmp_path)), logits, what)


def _expect_sound(case: Case, folder: Path, base: TransformerConfig | None, where: str) -> None:
    """Raise AssertionError with all that `inspect` finds."""
    report = inspect_path(folder, case.host, base=base)
    problems = [*report.problems, *(p for part in report.parts for p in part.problems)]
    expect(not problems, f"{case}: inspect finds, {where}:\n{listed(problems)}")


def _change(peft: PeftModel) -> None:
    """Move all weights, in the arrays that they have."""
    for parameter in peft.base_model.parameters():
        parameter.data += 1


def _changes(tensors: dict[str, AnyArray]) -> Iterator[tuple[str, str, dict[str, AnyArray]]]:
    """Yield what is changed in a file, at which tensor, and what the file then holds."""
    for name in tensors:
        yield "without", name, {key: value for key, value in tensors.items() if key != name}
    for name, tensor in list(tensors.items())[:1]:
        yield "with a longer", name, tensors | {name: np.concatenate([tensor, tensor])}
    more = "no_such_tensor"
    yield "with", more, tensors | {more: np.zeros(1, np.float32)}


def _expect_refused(case: Case, directory: Path, name: str, what: str) -> None:
    """Raise AssertionError unless loading is an error that names the tensor."""
    base = case.base()
    before = Snapshot.of(base)
    try:
        case.load(directory, base)
    except CheckpointError as error:
        expect(name in str(error), f"{case}: {what} is refused, and not named: {error}")
        before.expect_unchanged(base, f"{case}: the base that {what} was refused for")
        return
    raise AssertionError(f"{case}: expected {what} to be refused, and it was loaded")

"""params.yaml: what is accepted, what is merged, and the one sentence that a mistake gets."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dfvt.data.decoding import FLAGS
from dfvt.settings import VARIANTS, ColorType, Profile, Settings, WeightsSettings, load_settings

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


def load(path: Path, text: str) -> Settings:
    path.write_text(text, encoding="utf-8")
    return load_settings(path)


def refusal(path: Path, text: str) -> str:
    with pytest.raises(ValueError) as caught:
        load(path, text)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path)).lstrip(": ")


def test_the_params_of_the_project_are_the_defaults() -> None:
    assert load_settings(PROJECT / "params.yaml") == Settings(profile="mini")


def test_settings_cannot_be_changed_and_can_be_pickled() -> None:
    settings = Settings(profile="mini")
    with pytest.raises(ValidationError, match="frozen"):
        settings.train.lr = 1.0  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_values_of_a_variant_win_over_common_ones(params: Path) -> None:
    train = load(
        params,
        """
profile: mini
train:
  lr: 2e-4
  batch_size: 4
  num_workers: 2
  use_gpu: false
  cfg_options: {model.neck.out_channels: 64, data.samples_per_gpu: 1}
  variants:
    small: {lr: 1, num_epochs: 3, batch_size: null, cfg_options: {data.samples_per_gpu: 2}}
""",
    ).train
    small = train.for_variant("small")
    assert (small.variant, small.seed, small.num_workers, small.use_gpu) == ("small", 0, 2, False)
    assert (small.lr, small.num_epochs, small.batch_size) == (1.0, 3, 4)
    assert small.cfg_options == {"model.neck.out_channels": 64, "data.samples_per_gpu": 2}
    tiny = train.for_variant("tiny")
    assert (tiny.lr, tiny.num_epochs, tiny.batch_size) == (2e-4, None, 4)
    assert tiny.cfg_options == {"model.neck.out_channels": 64, "data.samples_per_gpu": 1}


def test_the_size_of_images_is_a_pair_the_longer_side_first(params: Path) -> None:
    for text, size in (("[320, 256]", (320, 256)), ("[320, 320]", (320, 320)), ("null", None)):
        train = load(params, f"profile: mini\ntrain: {{image_size: {text}}}").train
        assert train.image_size == train.for_variant("tiny").image_size == size
    message = refusal(params, "profile: mini\ntrain: {image_size: [256, 320]}")
    assert message.startswith("train.image_size is [256, 320], whose shorter side is the first, but must be")


def test_the_colour_types_are_those_of_the_reader() -> None:
    assert set(get_args(ColorType)) == set(FLAGS)


def test_nested_cfg_options_become_dotted_keys(params: Path) -> None:
    settings = load(
        params, "{profile: mini, train: {cfg_options: {model: {a: {b: 1}, c: [x, {d: 2}], e: {}}, f: null}}}"
    )
    assert settings.train.cfg_options == {
        "model.a.b": 1,
        "model.c": ["x", {"d": 2}],
        "model.e": {},
        "f": None,
    }


dotted = st.lists(st.text("abc", min_size=1, max_size=2), min_size=1, max_size=3).map(".".join)
options = st.dictionaries(dotted, st.integers(), max_size=4)


@given(common=options, own=options)
def test_merged_options_are_the_common_ones_updated(common: dict[str, int], own: dict[str, int]) -> None:
    settings = Settings.model_validate(
        {"profile": "mini", "train": {"cfg_options": common, "variants": {"base": {"cfg_options": own}}}}
    )
    assert settings.train.for_variant("base").cfg_options == common | own
    assert settings.train.for_variant("tiny").cfg_options == common


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_profile_has_its_own_configs(variant: str) -> None:
    mini = Settings(profile="mini").config_path(variant)
    assert mini == Path(f"configs/mini/maskrcnn_DFvT_{variant}_mini.py")
    for profile in ("custom", "coco2017"):
        path = Settings(profile=profile).config_path(variant)
        assert path == Path(f"configs/DFvT/maskrcnn_DFvT_{variant}_1x_coco.py")


def test_a_folder_of_configs_must_hold_exactly_one_for_a_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(profile="mini", configs=Path("configs/own"))
    folder = Path("configs/own")
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"exactly one maskrcnn_DFvT_tiny_\*\.py, but has none"):
        settings.config_path("tiny")
    config = folder / "maskrcnn_DFvT_tiny_own.py"
    config.touch()
    (folder / "maskrcnn_DFvT_small_own.py").touch()
    assert settings.config_path("tiny") == config
    (folder / "maskrcnn_DFvT_tiny_other.py").touch()
    with pytest.raises(ValueError, match=r"but has maskrcnn_DFvT_tiny_other\.py, maskrcnn_DFvT_tiny_own\.py"):
        settings.config_path("tiny")


def test_configs_outside_of_the_folder_that_dvc_watches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must lie in configs/"):
        Settings(profile="mini", configs=tmp_path).config_path("tiny")


@pytest.mark.parametrize(("profile", "used"), [("mini", False), ("custom", True), ("coco2017", True)])
def test_pretrained_weights_are_used_except_for_generated_data(profile: Profile, used: bool) -> None:
    assert Settings(profile=profile).use_pretrained == used
    for wanted in (True, False):
        assert Settings(profile=profile, weights=WeightsSettings(pretrained=wanted)).use_pretrained == wanted


def test_an_unknown_variant_names_the_known_ones() -> None:
    settings = Settings(profile="mini")
    for ask in (settings.config_path, settings.train.for_variant):
        with pytest.raises(ValueError, match="unknown variant 'huge'; it must be one of tiny, small, base"):
            ask("huge")


def test_base_addresses_are_folders(params: Path) -> None:
    assert load(params, "{profile: mini, data: {base_url: 'file:///a b'}}").data.base_url == ("file:///a b/",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "profile is missing, it must be one of mini, custom, coco2017."),
        ("profile: Mini", 'profile is "Mini", but must be one of mini, custom, coco2017.'),
        ("profile: custom", "data.root is missing; profile custom needs it, the path of your data set."),
        ("[1]", "holds [1], but must be a mapping with the key profile."),
        ("profile: mini\ntrain:", "train is null, but must be a mapping."),
        (
            "profile: mini\ntrain: {lr: '1e-3'}",
            'train.lr is "1e-3", but must be a number above 0, or null for the config\'s own.',
        ),
        (
            "profile: mini\ntrain: {variants: {tiny: {lr: fast}}}",
            'train.variants.tiny.lr is "fast", but must be a number above 0, or null for the config\'s own.',
        ),
        (
            "profile: mini\ntrain: {seed: true, lr: -1, use_gpu: maybe}",
            "train.seed is true, but must be a whole number from 0 to 4294967295 (and 2 more such).",
        ),
        ("profile: mini\ntrain: {use_gpu: 1}", "train.use_gpu is 1, but must be one of auto, true, false."),
        (
            "profile: mini\nevaluate: {score_treshold: 0.3}",
            "evaluate.score_treshold is an unknown key (did you mean score_threshold?), "
            "valid here are score_threshold, num_gallery_images.",
        ),
        (
            "profile: mini\ntrain: {variants: {huge: {}}}",
            "train.variants.huge is an unknown key, valid here are tiny, small, base.",
        ),
        (
            "profile: mini\ndata: {root: ''}",
            'data.root is "", but must be the path of a folder in COCO layout.',
        ),
        (
            "profile: mini\ndata: {val_images: /val}",
            'data.val_images is "/val", but must be a path relative to data.root.',
        ),
    ],
)
def test_a_mistake_gets_one_sentence(params: Path, text: str, message: str) -> None:
    assert refusal(params, text) == message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("train.lr", value) for value in ("0", ".inf", ".nan", "true", "[1]")],
        *[("train.num_epochs", value) for value in ("0", "1.0", "false", "'1'", "2024-01-01")],
        *[("train.batch_size", value) for value in ("0", "0.5")],
        *[("train.image_size", value) for value in ("320", "[320]", "[320, 256, 3]", "[256, 320]")],
        *[("train.image_size", value) for value in ("[320, 31]", "[320.0, 256]", "{a: 1}", "true")],
        *[("train.num_workers", value) for value in ("0", "null")],
        *[("train.seed", value) for value in ("-1", "4294967296", "null")],
        *[("train.use_gpu", value) for value in ("yes", "0", "1.0", "null")],
        *[("train.cfg_options", value) for value in ("[]", "{a..b: 1}", "{a b: 1}", "{1: 2}", "&x {a: *x}")],
        *[("data.shapes.num_val", value) for value in ("0", "null")],
        *[("data.shapes.height", value) for value in ("31", "128.5")],
        *[("data.base_url", value) for value in ("ftp://host/", "host", "'http://'", "''", "'http://['")],
        *[("data.train_annotations", value) for value in ("3", "null", "''")],
        *[("configs", value) for value in ("''", "1")],
        *[("evaluate.score_threshold", value) for value in ("-0.1", "1.1", ".nan")],
        *[("evaluate.num_gallery_images", value) for value in ("-1", "1.5")],
        *[("tracking.experiment", value) for value in ("' '", "3", "null")],
        *[("report.title", value) for value in ("''", "[]")],
    ],
)
def test_values_out_of_range_or_of_another_type_are_refused(params: Path, key: str, value: str) -> None:
    *sections, last = key.split(".")
    text = "profile: mini\n"
    for depth, section in enumerate(sections):
        text += f"{'  ' * depth}{section}:\n"
    message = refusal(params, f"{text}{'  ' * len(sections)}{last}: {value}")
    assert message.startswith(f"{key} is ")
    assert "but must be " in message


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("profile: mini\ntrain: [", 2, "expected the node content"),
        ("profile: mini\n\ttrain: 1", 2, "found character '\\t'"),
        ("profile: mini\nprofile: custom", 2, 'found duplicate key "profile"'),
        ("profile: mini\ntrain: !!python/object:os.system {}", 2, "could not determine a constructor"),
    ],
)
def test_broken_yaml_is_refused_with_its_line(params: Path, text: str, line: int, reason: str) -> None:
    message = refusal(params, text)
    assert message.startswith(f", line {line}: not valid YAML, {reason}")


def test_a_file_that_is_no_text_is_refused(params: Path) -> None:
    params.write_bytes(b"profile: \xff\xfe")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_settings(params)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file") as caught:
            load_settings(path)
        assert str(path) in str(caught.value)


sections = st.sampled_from(["profile", "data", "train", "variants", "tiny", "lr", "cfg_options", "nonsense"])
nonsense = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text("ab\n: '{", max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(sections, inner, max_size=3),
    max_leaves=8,
)


@hypothesis_settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(document=st.dictionaries(sections, nonsense, max_size=4).map(repr) | st.text(max_size=30))
def test_nonsense_is_either_settings_or_one_sentence(params: Path, document: str) -> None:
    params.write_text(document, encoding="utf-8", errors="replace")
    try:
        load_settings(params)
    except ValueError as error:
        assert str(error).startswith(str(params))
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("{path: a.zip, size: 3}", "data.archives.0.md5 is missing, it must be its MD5"),
        (
            "{path: a.zip, size: 3, md5: x}",
            'data.archives.0.md5 is "x", but must be its MD5, 32 hexadecimal digits',
        ),
        ("{path: a.zip, size: 0, md5: x}", "data.archives.0.size is 0, but must be its bytes"),
        (
            f"{{path: a.zip, size: 1, md5: {32 * 'a'}, length: 0}}",
            "data.archives.0.length is an unknown key",
        ),
        ("3", "data.archives is 3, but must be a list of archives"),
    ],
)
def test_an_entry_of_a_list_is_named(params: Path, entry: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load(params, f"{{profile: mini, data: {{archives: [{entry}]}}}}")

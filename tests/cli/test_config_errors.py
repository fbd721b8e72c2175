"""A mistake is one line that names the key and the nearest valid name, through the real parser."""

import copy
import warnings
from pathlib import Path

import pytest
import yaml
from PIL import Image
from torch.utils.data import DataLoader

from pixio_lightning.cli import config_errors
from pixio_lightning.cli import main as cli
from pixio_lightning.cli.config_tree import flatten
from pixio_lightning.cli.lightning_cli import quieten
from pixio_lightning.cli.options import check_environment
from pixio_lightning.data.pixels import Pixels
from pixio_lightning.errors import UserError

GONE = object()
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 1}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (40, 40), (60 * i, 0, 0)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def recipe(photos: Path) -> dict:
    backbone = {"name": "pixio_vitt16", "weights": "random", "tune": "full", "model_args": TINY}
    decoder = {"dim": 16, "depth": 1, "heads": 1}
    model = {"backbone": backbone, "mask_grid": 2, "decoder": decoder, "optim": {"lr": 1e-3}}
    data = {"source": "folder", "path": str(photos), "image_size": 32, "batch_size": 2}
    return {
        "model": {"class_path": "PixelPretraining", "init_args": model},
        "data": {"class_path": "Pixels", "init_args": data | {"num_workers": 0}},
        "trainer": {"max_steps": 2, "accelerator": "cpu", "callbacks": []},
        "checkpoint": {"every_n_steps": 1},
    }


def changed(recipe: dict, key: str, value: object) -> dict:
    """A recipe with another value at a dotted key, `model/x` for what is below init_args."""
    recipe = copy.deepcopy(recipe)
    *path, last = key.replace("/", ".init_args.").split(".")
    section = recipe
    for part in path:
        section = section.setdefault(part, {})
    section.pop(last, None)
    if value is not GONE:
        section[last] = value
    return recipe


def run(recipe: dict | str, folder: Path, *words: str, verb: str = "check") -> int:
    path = folder / "mine.yaml"
    path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
    return cli.main([verb, "-c", str(path), "--out", str(folder / "run"), *words])


def told(capsys: pytest.CaptureFixture[str], code: int) -> str:
    output = capsys.readouterr()
    assert code == 2, output
    said = [line for line in output.out.splitlines() if not line.startswith("rendering ")]
    assert not said  # scenes are rendered where the cache lacks them
    (line,) = output.err.splitlines()
    assert line.startswith("pixio: error: ") and "Traceback" not in line and len(line) < 500
    return line.removeprefix("pixio: error: ")


def callback(name: str, **arguments: object) -> list[dict]:
    return [{"class_path": name, "init_args": arguments}]


UNKNOWN_CLASSES = [
    ("model.class_path", "PixelPretrainig", "model.class_path", "PixelPretraining"),
    ("model.class_path", "Nothing", "model.class_path 'Nothing' is not known; there are", None),
    (
        "model.class_path",
        "pixio_lightning.pretraining.masked_pixels.Pixel",
        "no attribute 'Pixel'",
        None,
    ),
    ("model.class_path", "nosuch.module.Class", "model: No module named 'nosuch'", None),
    ("model.class_path", "pixio_lightning.data.pixels.Pixels", "model: Import path", None),
    ("data.class_path", "Pixel", "data.class_path 'Pixel' is not known", "Pixels"),
    ("trainer.callbacks", callback("OnlineProb"), "trainer.callbacks: class", "OnlineProbe"),
    ("trainer.callbacks", callback("nosuch.Probe"), "trainer.callbacks: No module named", None),
    ("trainer.logger", callback("CSVLoger")[0], "trainer.logger: class", "CSVLogger"),
    ("model/backbone", "pixio_vitb16", "expected keys below it, as model.backbone.name", None),
    ("model/backbone.name", "pixio_vitx16", "backbone.name 'pixio_vitx16'", "pixio_vitt16"),
]
UNKNOWN_KEYS = [
    ("modle", {}, "there is no key modle", "model"),
    ("trainr", {"max_steps": 3}, "there is no key trainr", "trainer"),
    ("model/mask_gird", 2, "there is no key model.mask_gird", "mask_grid"),
    ("model.mask_grid", 2, "model.mask_grid beside model.class_path", None),
    ("model/backbone.tuen", "full", "there is no key model.backbone.tuen", "tune"),
    ("model/backbone.model_args.depht", 2, "backbone.model_args does not fit", None),
    ("model/optim.weight_deacy", 0, "there is no key model.optim.weight_deacy", "weight_decay"),
    ("model/decoder.dpeth", 0, "there is no key model.decoder.dpeth", "depth"),
    ("data/batchsize", 2, "there is no key data.batchsize", "batch_size"),
    ("data/scenes", {"trian": 2}, "there is no key data.scenes.trian", "train"),
    ("trainer.max_stepz", 2, "there is no key trainer.max_stepz", "max_steps"),
    ("trainer.callbacks", callback("OnlineProbe", kindd=1), "key trainer.callbacks.kindd", "kind"),
    ("checkpoint.every_steps", 2, "there is no key checkpoint.every_steps", "every_n_steps"),
    ("panels.image", 2, "there is no key panels.image", "images"),
    ("preemption.requeu", True, "there is no key preemption.requeu", "requeue"),
]
WRONG_VALUES = [
    ("data/batch_size", "eight", "data.batch_size is 'eight', but expected int", None),
    ("data/batch_size", None, "data.batch_size is null, but expected int", None),
    ("data/batch_size", 0, "data.batch_size is 0, but expected at least 1", None),
    ("data/num_workers", -1, "data.num_workers is -1, but expected at least 0", None),
    ("data/crop_scale", [-1, 1], "expected more than 0 and at most 1", None),
    ("data/crop_ratio", [0, 1], "data.crop_ratio is [0.0, 1.0], but expected more than 0", None),
    ("data/max_bad", -1, "data.max_bad is -1.0, but expected at least 0 and at most 1", None),
    ("data/path", "${HOME}/photos", "${HOME} is expanded by a shell only", None),
    ("model/optim.betas", [2, 0], "expected at least 0 and less than 1", None),
    ("model/optim.lr", -1, "model.optim.lr is -1.0, but expected at least 0", None),
    ("model/optim.warmup", float("nan"), "model.optim.warmup is nan, but expected a finite", None),
    ("data/crop_scale", [float("nan"), 1], "but expected a finite number", None),
    ("data/timeout", float("inf"), "data.timeout is inf, but expected a finite number", None),
    ("data/timeout", 1e12, "expected at least 0 and at most 2000000", None),
    ("model/optim.lr", float("inf"), "model.optim.lr is inf, but expected a finite", None),
    ("trainer.check_val_every_n_epoch", 0, "is 0, but expected at least 1", None),
    ("trainer.val_check_interval", 0, "is 0, but expected more than 0", None),
    ("trainer.gradient_clip_val", -1, "trainer.gradient_clip_val is -1", None),
    ("trainer.accumulate_grad_batches", 0, "is 0, but expected at least 1", None),
    ("seed_everything", -1, "expected at least 0 and at most 4294967295", None),
    ("data/image_size", -8, "data.image_size is -8, but expected at least 1", None),
    ("data/image_size", 36, "data.image_size is 36, but expected a multiple of 8", None),
    ("data/image_size", 40, "model.mask_grid 2 does not divide the 5 x 5 grid of patches", None),
    ("data/image_size", 16, "model.mask_ratio 0.75 keeps 0 of 1 blocks", None),
    ("model/backbone.model_args.in_chans", 1, "images of 1 channels (in_chans): give mean", None),
    (
        "model/backbone.model_args",
        TINY | {"in_chans": 4, "mean": [0.5], "std": [0.2]},
        "the backbone takes images of 4 channels (backbone.model_args.in_chans, or what its "
        "weights are made for), but Pixels gives 3: leave in_chans out",
        None,
    ),
    ("data/steps_per_epoch", -1, "data.steps_per_epoch is -1, but expected at least 1", None),
    ("data/crop_scale", 0.2, "data.crop_scale is '0.2', but expected tuple", None),
    ("data/source", "foldr", "data.source is 'foldr', but expected one of", "folder"),
    ("model/mask_ratio", "half", "model.mask_ratio is 'half', but expected float", None),
    ("model/mask_grid", 3, "model.mask_grid 3 does not divide", None),
    ("model/backbone.tune", "forzen", "model.backbone.tune is 'forzen'", "frozen"),
    ("model/backbone.tune", "frozen", "set model.backbone.tune to full", None),
    ("model/backbone.layers", "lats", "model.backbone.layers is 'lats'", "last"),
    ("model/backbone.drop_path", None, "model.backbone.drop_path is null", None),
    (
        "model/optim",
        3,
        "model.optim is 3, but expected keys below it: backbone_lr_scale, betas",
        None,
    ),
    ("model/optim.lr", "fast", "model.optim.lr is 'fast', but expected float", None),
    ("model/optim.schedule", "cosin", "model.optim.schedule is 'cosin'", "cosine"),
    ("model/optim.lr", None, "there is no learning rate: give model.optim.blr", None),
    ("trainer.max_steps", "many", "trainer.max_steps is 'many', but expected int", None),
    ("trainer.max_steps", -1, "set trainer.max_steps", None),
    ("trainer.precision", "16-mixd", "trainer.precision is '16-mixd'", "16-mixed"),
    ("trainer.callbacks", callback("OnlineProbe", kind="kn"), "trainer.callbacks.kind", "knn"),
    ("trainer", 3, "trainer is 3, but expected keys below it", None),
    ("model", 3, "model is 3, but expected keys below it", None),
    ("checkpoint.every_n_steps", "x", "checkpoint.every_n_steps is 'x', but expected int", None),
    ("seed_everything", "x", "seed_everything is 'x', but expected bool, or int", None),
]
MISSING = [
    ("model", GONE, "model.class_path is missing; there are PixelPretraining", None),
    ("model.class_path", GONE, "model.class_path is missing", None),
    ("data", GONE, "data.class_path is missing; there are Pixels", None),
    ("model/backbone", GONE, "model.backbone is missing", None),
    ("model/backbone.weights", GONE, "model.backbone.weights is missing", None),
    ("data/path", GONE, "data.source is folder: give data.path", None),
    ("model/backbone.weights", "none.ckpt", "weights 'none.ckpt': no such file or folder", None),
]


def test_the_recipe_itself_is_right(recipe: dict, tmp_path: Path, capsys) -> None:
    assert run(recipe, tmp_path) == 0
    assert "peak lr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "text", "near"), UNKNOWN_CLASSES + UNKNOWN_KEYS + WRONG_VALUES + MISSING
)
def test_a_mistake_in_a_recipe_is_one_line(
    recipe: dict, tmp_path: Path, capsys, key: str, value: object, text: str, near: str | None
) -> None:
    line = told(capsys, run(changed(recipe, key, value), tmp_path))
    assert text in line
    assert near is None or f"did you mean '{near}'?" in line


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--model.mask_gird 2", "no key model.mask_gird, did you mean 'mask_grid'?"),
        ("--model.backbone.weight x", "no key model.backbone.weight, did you mean 'weights'?"),
        ("--model.optim.lrr 1", "no key model.optim.lrr, did you mean 'lr'?"),
        ("--data.batch_size eight", "data.batch_size is 'eight', but expected int"),
        ("--data.scenes.places null", "data.scenes.places cannot be null on the command line: set"),
        ("--trainer.max_stepz 3", "no key trainer.max_stepz, did you mean 'max_steps'?"),
        ("--trainr.max_steps 3", "no key trainr.max_steps, did you mean 'trainer'?"),
        # A beginning that is unique is no name: a new key would change what it means.
        ("--checkpoint.every_n 3", "no key checkpoint.every_n, did you mean 'every_n_steps'?"),
        ("--trainer.callbacks+=OnlineProb", "'OnlineProb' is not known, did you mean"),
        (
            "--trainer.callbacks+=OnlineProbe --trainer.callbacks.kind kn",
            "trainer.callbacks.kind is 'kn', but expected one of 'knn', 'linear', did you mean",
        ),
        ("--model=PixelPretrainin", "model.class_path 'PixelPretrainin' is not known, did you"),
        ("--data.path", "--data: expected one argument"),
        ("stray", "'stray' stands where no option takes it: a recipe is named by -c"),
        ("--lr 1e-3", "there is no key lr, did you mean 'model.optim.lr'?"),
        ("--batch_size=4", "there is no key batch_size, did you mean 'data.batch_size'?"),
        ("--devices 2", "there is no key devices, did you mean 'trainer.devices'?"),
        ("--seed 1", "there is no key seed; there are"),  # model.seed, or data.seed
        ("--decoder.dpeth 3", "there is no key decoder.dpeth"),
        ("-c", "-c/--config: expected one argument"),
        ("-c pretrain/dmeo", "no recipe or file 'pretrain/dmeo'"),
        ("--ckpt_path s3://bucket/last.ckpt", "checkpoint 's3://bucket/last.ckpt' is a URL"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    recipe: dict, tmp_path: Path, capsys, words: str, text: str
) -> None:
    assert text in told(capsys, run(recipe, tmp_path, *words.split()))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("model: {backbone: [1, 2", "is not valid YAML"),
        ("model:\n\t- 1", "is not valid YAML"),
        ("- 1\n- 2", "holds no keys; expected checkpoint, data, model"),
        ("# a comment alone\n", "holds no keys"),
        ("model: " + "[" * 5000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line(
    tmp_path: Path, capsys, content: str, text: str
) -> None:
    line = told(capsys, run(content, tmp_path))
    assert line.startswith(f"recipe '{tmp_path}/mine.yaml' ") and text in line


def test_a_word_of_another_verb_is_refused(recipe: dict, tmp_path: Path, capsys) -> None:
    line = told(capsys, run(recipe, tmp_path, "--fresh", verb="validate"))
    assert "--fresh begins a training anew; pixio validate trains nothing" in line


@pytest.mark.parametrize(
    ("devices", "processes"), [("3", 3), ("[0,1]", 2), ("0,1", 2), ("0,", 1), ("auto", 1)]
)
def test_a_plan_is_for_the_devices_that_are_typed(
    recipe: dict, tmp_path: Path, capsys, devices: str, processes: int
) -> None:
    assert run(recipe, tmp_path, "--trainer.devices", devices, verb="check") == 0
    assert f" x {processes} processes x 1 accumulated" in capsys.readouterr().out


def test_a_class_may_be_replaced_by_its_path_and_by_another_head(tmp_path: Path, capsys) -> None:
    for words in (
        ["--model.class_path", "pixio_heads.depth.head.Depth"],
        ["--model.class_path", "pixio_heads.depth.head.Dept"],
        ["--model.class_path", "Segmentation"],
    ):
        cli.main(["check", "-c", "depth/demo", *words, "--out", str(tmp_path)])
        assert "class 'Depth' is not known" not in capsys.readouterr().err


def test_missing_files_are_one_line(recipe: dict, tmp_path: Path, capsys) -> None:
    (tmp_path / "last.ckpt").touch()
    missing = str(tmp_path / "lsat.ckpt")
    line = told(capsys, run(recipe, tmp_path, "--ckpt_path", missing, verb="validate"))
    assert line == f"--ckpt_path '{missing}' does not exist, did you mean 'last.ckpt'?"
    line = told(capsys, run(recipe, tmp_path, "--data.path", str(tmp_path / "photo"), verb="fit"))
    assert line == f"data.path '{tmp_path}/photo' is not a folder, did you mean 'photos'?"
    assert "no recipe or file 'pretrain/dem'" in told(
        capsys, cli.main(["fit", "-c", "pretrain/dem"])
    )


def test_the_grid_that_is_masked_is_that_of_the_images(recipe: dict, tmp_path: Path) -> None:
    """Weights of 5 x 5 patches, which no block of 2 divides, are trained on 4 x 4."""
    recipe = changed(recipe, "model/backbone.model_args", TINY | {"img_size": 40})
    assert run(recipe, tmp_path) == run(recipe, tmp_path, verb="fit") == 0


def test_every_key_of_a_recipe_is_listed(recipe: dict, tmp_path: Path, capsys) -> None:
    assert run(recipe, tmp_path, "--help-all") == 0
    shown = capsys.readouterr().out
    for key in ("trainer.max_steps", "checkpoint.best", "model.mask_ratio", "data.crop_scale"):
        assert f"--{key}" in shown
    with pytest.raises(SystemExit):
        cli.main(["fit", "--model.help", "PixelPretraining"])
    assert "--model.mask_ratio" in capsys.readouterr().out


def test_a_checkpoint_of_another_model_is_told_by_its_name(
    recipe: dict, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    assert run(recipe, tmp_path, verb="fit") == 0
    words = ["validate", "-c", "depth/demo", "-c", "with/debug", "--out", str(tmp_path / "depth")]
    words += ["--data.scenes", "{train: 2, held_out: 2, views: 1, size: 64}"]
    assert cli.main([*words, "--ckpt_path", str(tmp_path / "run" / "last.ckpt")]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("pixio: error")]
    assert "is one of PixelPretraining, but the recipe trains Depth: " in line
    assert "give --model.backbone.weights" in line


def test_every_bound_is_that_of_a_key(recipe: dict, tmp_path: Path, capsys) -> None:
    keys: set[str] = set()
    for given in (recipe, "depth/demo", "policy/demo"):
        with pytest.raises(SystemExit):
            if isinstance(given, dict):
                run(given, tmp_path, "--print_config")
            else:
                cli.main(["fit", "-c", given, "--print_config"])
        keys |= dict(flatten(yaml.safe_load(capsys.readouterr().out))).keys()
    assert config_errors.BOUNDS.keys() <= keys


def test_a_recipe_comes_before_what_changes_it(capsys) -> None:
    words = ["check", "-c", "with/finetune"]
    line = told(capsys, cli.main([*words, "-c", "depth/demo"]))
    assert line.endswith("put it behind, -c depth/demo -c with/finetune")
    line = told(capsys, cli.main(words))
    assert line.startswith("model.class_path is missing: give a recipe first, as in `-c pretrain")
    line = told(capsys, cli.main(["check", "--data.path", "photos"]))
    assert line.startswith("model.class_path is missing: give a recipe first, as in `-c pretrain")


def test_tasks_that_lightning_does_not_divide(recipe: dict, tmp_path: Path, capsys, monkeypatch):
    for name in ("SLURM_NTASKS_PER_NODE", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert "SLURM gives 4 tasks by --ntasks" in told(capsys, run(recipe, tmp_path, verb="fit"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # `srun torchrun` counts its own
    assert run(recipe, tmp_path) == 0
    check_environment()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--trainer.accelerator=gpuu", "gpuu"),
        ("--trainer.strategy=dpd", "dpd"),
        ("--trainer.devices=two", "trainer: `devices`"),
        ("--data.val_path=nowhere", "data.val_path 'nowhere' is not a folder"),
        ("--trainer.val_check_interval=100000", "`val_check_interval` (100000) must be less"),
        ("--trainer.overfit_batches=1", "trainer.overfit_batches is 1"),
        ("--trainer.min_steps=3", "trainer.min_steps is 3, but a run takes trainer.max_steps"),
        ("--trainer.min_epochs=2", "trainer.min_epochs is 2"),
        ("--trainer.max_epochs=1", "trainer.max_epochs is 1 beside trainer.max_steps 2, by which"),
        ("--trainer.default_root_dir=here", "one folder, which --out names: give --out here"),
        ("--trainer.enable_checkpointing=false", "a run goes on from its last.ckpt: leave it out"),
        (
            "--trainer.callbacks+={class_path: GradientAccumulationScheduler, "
            "init_args: {scheduling: {0: 1}}}",
            "trainer.callbacks has GradientAccumulationScheduler",
        ),
        ("--trainer.reload_dataloaders_every_n_epochs=1", "a training stream has no end"),
        ("--model.decoder.dim=0", "decoder.dim is 0, but expected at least 1"),
        ("--model.decoder.heads=3", "decoder.heads 3 does not divide decoder.dim"),
    ],
)
def test_a_mistake_that_shows_only_in_a_run_is_one_line(
    recipe: dict, tmp_path: Path, capsys, words: str, text: str
) -> None:
    assert text in told(capsys, run(recipe, tmp_path, words, verb="fit"))
    assert not list(tmp_path.glob("run/*.ckpt"))


def test_pairs_of_frames_are_no_images(tmp_path: Path, capsys) -> None:
    words = ["fit", "-c", "pretrain/demo", "-c", "with/debug", "--data.class_path", "Clips"]
    line = told(capsys, cli.main([*words, "--out", str(tmp_path)]))
    assert line.startswith("PixelPretraining needs images, but Clips gives pairs of frames")


def test_the_cause_is_found_behind_other_exceptions() -> None:
    mistake = UserError("what is wrong")
    try:
        try:
            try:
                raise mistake
            except UserError as error:
                raise TypeError("in a library") from error
        except TypeError:
            raise RuntimeError("in another") from None  # hides, but keeps it
    except RuntimeError as error:
        assert config_errors.cause(error) is mistake
    assert config_errors.cause(RuntimeError("a real fault")) is None


def test_torch_s_advice_on_workers_reaches_no_one() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quieten()
        DataLoader(range(3), num_workers=1000)
    assert not [str(warning.message) for warning in told]


def test_an_evaluation_is_not_told_that_it_has_no_logger(tmp_path: Path) -> None:
    line = ["validate", "-c", "depth/demo", "--model.backbone.weights", "tiny", "--ckpt_path"]
    line += ["none", "--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}"]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert cli.main([*line, "--data.num_workers", "0", "--out", str(tmp_path)]) == 0
    assert not [str(w.message) for w in told if "no logger" in str(w.message)]


def test_a_verb_that_the_model_has_no_step_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model.backbone.weights", "random", "--model.backbone.name", "pixio_vitt16"]
    words = ["-c", "curation/demo", *model, "--out", str(tmp_path)]
    for verb in ("fit", "validate"):
        assert f"Scoring has no step for {verb}, only for predict" in told(
            capsys, cli.main([verb, *words])
        )


class AnySize(Pixels):
    """Data of a plug-in that keeps the sizes of its images."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        del self.image_size


def test_data_that_has_no_size_of_images_is_planned_without_costs(
    recipe: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, costs in ((f"{__name__}.AnySize", False), ("Pixels", True)):
        assert run(changed(recipe, "data.class_path", name), tmp_path) == 0
        assert ("GFLOP an image" in capsys.readouterr().out) == costs


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("features=two", "model.decoder.features is 'two', but expected int"),
        ("featurs=8", "there is no key model.decoder.featurs, did you mean 'features'? There are"),
        ("stages=null", "model.decoder.stages cannot be null on the command line"),
    ],
)
def test_a_mistake_in_a_decoder_is_told_as_any_other(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["check", "-c", "depth/demo", "--model.decoder", "DPTDecoder"]
    assert cli.main([*line, f"--model.decoder.{words}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pixio: error: {said}") and error.count("\n") == 1

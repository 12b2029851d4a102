"""Sample networks from the latent space of a SANE, and compare them with baselines that need no autoencoder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypedDict

import torch
from torch import Tensor, nn

from hf_sane.core._layout import Layout
from hf_sane.hub._publish import find_anchors, load_sane, loaded_commit, save_network
from hf_sane.models.autoencoder_sane import WeightAutoencoder
from hf_sane.models.modeling_linear import LinearCode
from hf_sane.networks._image_settings import ImageSettings
from hf_sane.networks._image_sources import IMAGE_KINDS
from hf_sane.networks._images import ImageData, load_zoo_images
from hf_sane.networks._modules import ModuleSettings
from hf_sane.networks._tasks import LabelledData, Task
from hf_sane.networks._texts import TextData
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import SeedSettings, as_arguments, setting
from hf_sane.records._sources import hub_id
from hf_sane.sampling._anchors import TOP_FRACTION
from hf_sane.sampling._comparison import METHODS, AnchorSet
from hf_sane.sampling._export import Provenance
from hf_sane.sampling._generation import Density, NetworkCodec
from hf_sane.sampling._refinement import Refinement, refine_by_gradient, refine_by_scores
from hf_sane.sampling._samplers import SAMPLERS, SamplingTask, parse_bandwidths, run_sampler
from hf_sane.sampling._selection import Judge, SelectedNetworks
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._saved_form import renamed_tensors, with_saved_names
from hf_sane.training._preparation import fit_code
from hf_sane.workflows.judging import (
    MetricSettings,
    TextSettings,
    accuracy_notes,
    recorded_accuracies,
    recorded_texts,
)
from hf_sane.workflows.networks import Network, NetworksResult, open_images, open_stack
from hf_sane.workflows.results import Table, joined_output, rows_of
from hf_sane.workflows.shared import BUNDLE, CodecSettings, SaneSettings, SourceSettings
from hf_sane.workflows.show_zoo import load_zoo
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._settings import ZooSourceSettings

# Settings shown in the run record and on the networks' cards.
RECORDED = (
    *("sane", "zoo", "zoo_config", "method", "code", "mode", "unit", "num_candidates", "top_fraction"),
    *("window_size", "halo_size"),
)

REFINEMENT = (
    "refine",
    "refine_method",
    "refine_steps",
    "refine_rate",
    "refine_prior",
)  # recorded if networks are refined

CODES = {"sane": "SANE", "linear": "linear code"}  # titles
TRAINING_ONLY = ("initialization", "dropout")  # settings that do not affect a network's weights


class Autoencoder(Protocol):
    """The part of `SANE` that sampling needs, since `SANE` itself imports this module."""

    @property
    def model(self) -> WeightAutoencoder:
        """The autoencoder."""

    @property
    def extractor(self) -> SANEFeatureExtractor:
        """Its weight tokenizer."""

    @property
    def source(self) -> str | None:
        """Folder or repository that the autoencoder was loaded from."""

    @property
    def revision(self) -> str | None:
        """Commit of the repository."""

    @property
    def subfolder(self) -> str | None:
        """Subfolder of the source that holds the autoencoder."""


@dataclass(kw_only=True)
class SampleSettings(
    CodecSettings,
    SourceSettings,
    SaneSettings,
    ZooSourceSettings,
    ImageSettings,
    ModuleSettings,
    MetricSettings,
    TextSettings,
    SeedSettings,
):
    """Settings of [`sample`]."""

    sane: str | Autoencoder | None = setting(
        "SANE (folder or Hub repo id); by default a linear code, which is fitted to the zoo, or without a zoo the "
        "built-in SANE, for small networks that read images of 32 pixels.",
        default=None,
    )
    output: Path | None = setting("New folder, with one subfolder per network.", short="-o")
    zoo: str | Path | Zoo | None = setting(
        "Zoo of one architecture (folder or Hub repo id), whose best training networks are the anchors.",
        default=None,
    )
    anchors: list[Network] = setting(
        "Trained networks of one architecture to sample around instead of a zoo (folders or Hub repo ids); by "
        "default the SANE's own anchors. Repeat the option for several.",
        factory=list,
        split=False,
    )
    images: str | ImageData | None = setting(
        f"Images: {IMAGE_KINDS}; by default those of the zoo. Validation images select networks, test images evaluate "
        "them.",
        default=None,
    )
    method: str = setting(
        "Sampler: subsample keeps the best of many, bootstrap samples again around the best, kde keeps all networks. "
        "Plug-ins can add more.",
        default="subsample",
        choices=lambda: SAMPLERS,
    )
    code: Literal["sane", "linear"] = setting(
        "Latent space to sample in: that of the SANE, or of a linear code with the same latent_dim, which is "
        "fitted to the zoo (requires --zoo).",
        default="sane",
    )
    num_samples: int = setting("Number of networks to keep.", default=10, least=1)
    num_candidates: int = setting("Number of networks to draw and evaluate in each round.", default=200, least=1)
    num_rounds: int = setting("Number of rounds of bootstrapping.", default=3)
    bandwidth: list[str | float] | str | float = setting(
        "Kernel width: a number, several numbers to select from on validation images, or a rule (scott, silverman).",
        factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    )
    unit: Literal["anchor_std", "latent_std", "latent"] = setting(
        "Unit of the bandwidth: the spread of the anchors or of all their tokens, or latents.",
        default="anchor_std",
    )
    mode: Literal["joint", "token", "scalar"] = setting(
        "Whether a whole network, a token or a scalar is drawn from one anchor.", default="joint"
    )
    num_anchors: int | None = setting("Number of anchors; by default all in the top fraction.", default=None, least=1)
    top_fraction: float = setting("Share of the best training runs to take anchors from.", default=TOP_FRACTION)
    epoch: int | None = setting("Epoch of the anchors; by default the last epoch of each run.", default=None)
    condition: bool = setting("Re-estimate BatchNorm statistics on training images.", default=True)
    prompt_statistics: bool = setting(
        "For layers that the SANE was not trained on, fit the scale to the zoo's training networks.",
        default=False,
    )
    refine: bool = setting(
        "Search the latents of the sampled networks for better ones: by gradient on training images or texts, or, if "
        "--evaluate judges them, by scores alone. Validation data decide when to stop.",
        default=False,
    )
    refine_method: Literal["auto", "gradient", "cross_entropy", "cma"] = setting(
        "How --refine searches: by gradient, or by validation scores alone with the cross-entropy method or CMA-ES "
        "(pip install 'hf_sane[refine]'); 'auto' is the gradient if there are training images or texts, and otherwise "
        "the cross-entropy method.",
        default="auto",
    )
    refine_steps: int = setting("Number of steps of the search by gradient.", default=60, least=1)
    refine_rate: float = setting("Step size of the search by gradient, in units of the bandwidth.", default=0.1)
    refine_prior: float = setting(
        "Penalty on the distance of the search from the sampled latents; 0 for none.", default=0.0
    )
    include_code: bool = setting("Save networks with their modelling code (for trust_remote_code).", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples > self.num_candidates:
            raise ValueError(
                "expected at most as many networks as candidates to choose from, got num_samples "
                f"{self.num_samples} and num_candidates {self.num_candidates}"
            )
        self.bandwidth = list(parse_bandwidths(self.bandwidth))
        for width in self.bandwidth:
            Density(width, self.unit, self.mode)  # type: ignore[arg-type]  # refuses incompatible settings
        SAMPLERS.find(self.method)
        self.search()
        if self.refine_method == "gradient" and self.evaluate is not None:
            raise ValueError(
                "expected training images (--images) or texts (--texts) to refine by gradient, got a function that "
                "judges networks (--evaluate); choose --refine-method cross_entropy or cma"
            )
        if self.anchors and self.zoo is not None:
            raise ValueError("expected a zoo (--zoo) or networks (--anchors) to sample around, got both; name one")
        if self.code == "linear" and self.zoo is None:
            raise ValueError(
                "expected a zoo (--zoo) to fit the linear code to, got none; name one, or name a SANE (--sane) or the "
                "folder of a code from hf-sane linear"
            )
        if self.sane is None and self.zoo is not None:
            self.code = "linear"
        if self.zoo is not None and self.weights:
            raise ValueError("--subfolder and --variant are for networks (--anchors), got a zoo; leave them out")
        if self.images is not None and self.texts is not None:
            raise ValueError("expected images (--images) or texts (--texts) to judge networks by, got both; name one")
        if self.anchors and self.images is None and self.texts is None and self.evaluate is None:
            raise ValueError(
                "expected images to judge networks by, since anchors do not record theirs; pass images (--images), "
                "texts (--texts) or a function (--evaluate)"
            )

    def search(self) -> Refinement:
        """How networks are refined.

        Raises:
            ValueError: If the step size or the penalty is out of range.
        """
        return Refinement(self.refine_steps, self.refine_rate, self.refine_prior, seed=self.seed)


class SampleJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        networks: Scores on test data and distances to trained networks, for sampled networks and baselines.
    """

    networks: dict[str, dict[str, float]]


@dataclass(kw_only=True)
class SampleResult(NetworksResult):
    """Sampled networks, sorted from best to worst on validation data.

    ```python
    networks[0]  # a Transformers model
    len(networks), networks.modules(), networks.evaluate("digits"), networks.provenance[0]
    ```

    Attributes:
        provenance: Origin of each network.
        comparison: `{networks: {measurement: value}}`, for sampled networks and baselines.
        measured: Additional measurements of each network, for its record and card; may be empty.
        title: Title of the cards, to which the network's number is added.
    """

    JSON: ClassVar[Any] = SampleJson
    JOB: ClassVar[str] = "sample"

    provenance: list[Provenance]
    comparison: dict[str, dict[str, float]] = field(default_factory=dict)
    measured: list[dict[str, Any]] = field(default_factory=list)
    title: str = "Sampled network"

    def tables(self) -> list[Table]:
        """The networks and their baselines."""
        if not self.comparison:
            return []
        mean, best, *distances = (name.replace("_", " ") for name in next(iter(self.comparison.values())))
        header = ("networks", f"mean {mean}", best, *distances)
        return [Table(header, rows_of(row_titles(self.comparison)))]

    def write(self, partial: Path) -> None:
        """Write the run record and one folder per network with its provenance, record and card."""
        facts = self.record.arguments
        for index, provenance in enumerate(self.provenance):
            found = {name: value for name in MEASURED if (value := getattr(provenance, name)) is not None}
            found |= provenance.scores
            save_network(
                partial / f"network_{index}",
                self[index],
                replace(self.record, results=found | (self.measured[index] if self.measured else {})),
                title=f"{self.title} {index}",
                base_model=hub_id(facts.get("sane")),
                datasets=[found for found in [hub_id(facts.get("zoo"))] if found],
                include_code=self.include_code,
                provenance=provenance,
                tokenizer=self.tokenizer,
            )
        super().write(partial)


MEASURED = ("test_accuracy", "validation_accuracy", "nearest_training_distance")


def row_titles(comparison: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """A comparison with the titles of its rows."""
    return {_title(name): row for name, row in comparison.items()}


def _title(name: str) -> str:
    """Title of sampled networks (`sane_kde`), or of the networks that they are compared with."""
    code, _, method = name.partition("_")
    return METHODS.get(name) or (f"{CODES[code]}, {method.replace('_', ' ')}" if code in CODES else name)


def sample(
    anchors: str | Path | Zoo | nn.Module | Sequence[Network] | NetworksResult,
    sane: str | Path | Autoencoder | None = None,
    **options: Any,
) -> SampleResult:
    """Sample new networks around trained ones, and compare them with anchors and baselines on test images.

    ```python
    networks = hf_sane.sample("org/zoo", "org/sane-cnn", num_samples=5)
    networks.save_pretrained("sampled")
    ```

    Args:
        anchors: A zoo, its folder or its Hub repo id, whose best training networks become the anchors; or a module
            or a list of networks (modules, folders, Hub repo ids) of one architecture, which requires `images`.
        sane: A SANE, its folder or its Hub repo id; by default a linear code, which is fitted to the zoo.
        **options: Other fields of [`SampleSettings`].

    Raises:
        ValueError: If settings contradict each other, or the zoo has fewer networks than requested anchors.
    """
    if isinstance(anchors, str | Path | Zoo):
        chosen: dict[str, Any] = {"zoo": anchors}
    else:
        chosen = {"anchors": anchors.modules() if isinstance(anchors, NetworksResult) else anchors}
    named = str(sane) if isinstance(sane, Path) else sane
    return run_sample(SampleSettings(sane=named, **{"output": None, **chosen, **options}))


def run_sample(settings: SampleSettings) -> SampleResult:
    """Sample networks, compare them with anchors and baselines on test images, and save them."""
    settings.register()
    named = settings.sane
    if named is None and settings.zoo is None:
        settings = replace(settings, sane=str(BUNDLE))
    if settings.zoo is None and not settings.anchors:
        settings = replace(settings, anchors=[_own_anchors(settings)])
    given = as_arguments(settings)
    given["sane"] = given["sane"] if named is not None else None  # the path of the built-in one helps nobody
    record = RunRecord.start(seed=settings.seed, arguments={name: given[name] for name in RECORDED} | settings.weights)
    record.arguments["prompt_statistics"] = settings.prompt_statistics
    with joined_output(settings.output, SampleResult.JOB) as output:
        result = _sample(settings, record)
        return output.write(result)


def _sample(settings: SampleSettings, record: RunRecord) -> SampleResult:
    task, data, zoo = _open_task(settings, record)
    anchors = _open_anchors(settings, record, zoo, task)
    images = data.split("train")[0] if data is not None and settings.condition else None
    judge = Judge(task.rank, conditioning_images=images)
    generator = torch.Generator().manual_seed(settings.seed)
    sampling = SamplingTask(
        anchors.codec,
        anchors.latents,
        judge,
        Density(0.0, settings.unit, settings.mode),
        num_samples=settings.num_samples,
        num_candidates=settings.num_candidates,
        num_rounds=settings.num_rounds,
        generator=generator,
    )
    selected, bandwidth = run_sampler(settings.method, sampling, parse_bandwidths(settings.bandwidth))
    code = "linear" if isinstance(anchors.codec.model, LinearCode) else "sane"
    sampled = {f"{code}_{settings.method}": selected.networks}
    record.arguments |= {"bandwidth": bandwidth, "num_anchors": len(anchors.names)}
    if settings.refine:
        selected = _refined(settings, sampling, selected, data)
        sampled[f"{code}_{settings.method}_refined"] = selected.networks
        record.arguments |= {name: getattr(settings, name) for name in REFINEMENT}
    rows = anchors.compare(sampled, judge, task, generator)
    record.finish({"networks": rows})
    return SampleResult(
        record=record,
        notes=[*task.notes, *accuracy_notes(_recorded(zoo, anchors), rows.get("anchors", {}).get("test_accuracy"))],
        stack=selected.networks,
        provenance=_provenance(settings, record, anchors, selected, task),
        comparison=rows,
        include_code=settings.include_code,
        tokenizer=data.tokenizer if isinstance(data, TextData) else None,
    )


def _refined(
    settings: SampleSettings, sampling: SamplingTask, selected: SelectedNetworks, data: LabelledData | None
) -> SelectedNetworks:
    """The networks after a search of their latents."""
    scale = Density(1.0, settings.unit, settings.mode).kernel(sampling.anchors)
    assert not isinstance(scale, str)
    codec, judge, search = sampling.codec, sampling.judge, settings.search()
    method = settings.refine_method
    if method == "auto":
        method = "cross_entropy" if data is None else "gradient"
    if method == "gradient":
        assert data is not None
        return refine_by_gradient(codec, selected, judge, *data.split("train"), scale=scale, settings=search)
    each = max(2, settings.num_candidates // settings.num_samples)
    rounds = replace(search, steps=settings.num_rounds, num_candidates=each)
    return refine_by_scores(codec, selected, judge, scale=scale, settings=rounds, method=method)


def _recorded(zoo: Zoo | None, anchors: AnchorSet) -> list[float]:
    """Recorded test accuracies of the anchors."""
    if zoo is None:
        return recorded_accuracies(anchors.names)
    final = zoo.splits["train"].final_epochs()
    known = dict(zip(final.run_ids, final.column("test_accuracy").tolist(), strict=True))
    return [float(known[name]) for name in anchors.names if known.get(name) is not None]


def _open_task(settings: SampleSettings, record: RunRecord) -> tuple[Task, LabelledData | None, Zoo | None]:
    """The task that networks are judged by, its images or texts, and the zoo; records their sources."""
    zoo = None if settings.zoo is None else _open_zoo(settings)
    record.arguments["zoo_revision"] = None if zoo is None else zoo.revision
    record.data |= {} if zoo is None else {"zoo": zoo.facts.name}
    data: ImageData | TextData | None = None
    if settings.texts is not None:
        data = settings.open_texts(settings.anchors)
    elif settings.images is not None:
        data = open_images(settings.images, **settings.image_shape)
    elif settings.evaluate is None:
        assert zoo is not None
        texts = recorded_texts(zoo.facts)
        data = texts if texts is not None else open_images(load_zoo_images(zoo.facts), **settings.image_shape)
    if data is not None:
        record.data["texts" if isinstance(data, TextData) else "images"] = data.describe()
    task = settings.task(data)
    record.arguments |= {} if task.metric == "accuracy" else {"metric": task.metric}
    return task, data, zoo


def _open_zoo(settings: SampleSettings) -> Zoo:
    assert settings.zoo is not None
    try:
        return load_zoo(settings.zoo, **settings.zoo_place)
    except FileNotFoundError as error:
        if not Path(str(settings.zoo)).is_dir():
            raise
        remedy = "pass them as a list, and images to judge by (--anchors, --images)"
        raise FileNotFoundError(f"{error}; to sample around the networks in it, {remedy}") from error


def _own_anchors(settings: SampleSettings) -> Path:
    """Folder of the anchors that come with the autoencoder."""
    sane = settings.sane
    assert sane is not None  # a linear code needs a zoo
    if isinstance(sane, str):
        source, place = sane, settings.sane_place
    else:
        source, place = sane.source or "", {"revision": sane.revision, "subfolder": sane.subfolder}
    found = find_anchors(source, **place) if source else None
    if found is None:
        raise ValueError(
            "expected a zoo (--zoo) or networks (--anchors) to sample around, got neither, and "
            f"{source or 'the SANE'} has no anchors of its own; name the zoo that it was trained on, or "
            "a folder of trained networks of one architecture and images to judge by (--anchors my_networks --images "
            "my_images)"
        )
    return found


def _open_anchors(settings: SampleSettings, record: RunRecord, zoo: Zoo | None, task: Task) -> AnchorSet:
    """Open the networks to sample around and the autoencoder, which is recorded."""
    model: WeightAutoencoder
    revision = subfolder = None
    if settings.sane is None:
        assert zoo is not None
        model, extractor = fit_code([zoo.splits["train"]], grouping="kind")
    elif isinstance(settings.sane, str):
        model, extractor = load_sane(settings.sane, **settings.sane_place)
        subfolder = settings.sane_subfolder
        revision = loaded_commit(settings.sane, settings.sane_revision, subfolder)
    else:
        model, extractor = settings.sane.model, settings.sane.extractor
        revision, subfolder = settings.sane.revision, settings.sane.subfolder
    record.arguments |= {"sane_revision": revision, "sane_subfolder": subfolder}
    options = settings.windows
    if zoo is None:
        stack, names = open_stack(settings.anchors, ignored=TRAINING_ONLY, **settings.weights)
        network = stack.model(0)  # since tied weights share memory
        renamed = renamed_tensors(network)
        layout = replace(extractor.lay_out(with_saved_names(network.state_dict(), renamed)), module_names=renamed)
        tokens = layout.tokens(stack.tensors, batch_dims=1)
        extractor = extractor.extended([(layout, tokens)]) if settings.prompt_statistics else extractor
        if settings.sane == str(BUNDLE):
            _check_built_in(extractor, layout, tokens)
        codec = NetworkCodec(model, extractor, layout, stack.config, **options)
        return AnchorSet(codec, tokens, tokens, tuple(names))
    train = zoo.splits["train"]
    layout, config = train.layout_and_config()
    if settings.prompt_statistics:
        extractor = extractor.extended([(layout, train.stacked_tokens())])
    codec = NetworkCodec(model, extractor, layout, config, **options)
    chosen = {"num_anchors": settings.num_anchors, "top_fraction": settings.top_fraction, "epoch": settings.epoch}
    anchors = AnchorSet.choose(codec, zoo, measure=task.rank, **chosen)  # type: ignore[arg-type]
    if settings.code == "sane" or settings.sane is None:
        return anchors
    return replace(anchors, codec=codec.linear(anchors.training_tokens))


def _check_built_in(extractor: SANEFeatureExtractor, layout: Layout, tokens: Tensor) -> None:
    """Raise an error if the built-in SANE, which nobody named, has other layers than the networks."""
    try:
        extractor.normalize(tokens[:1], layout)
    except (KeyError, ValueError) as error:
        raise ValueError(
            "expected networks with the layers of the built-in SANE, got others; pass a zoo of such networks (--zoo), "
            "to which a linear code is fitted, or a SANE that was trained on such (--sane)"
        ) from error


def _provenance(
    settings: SampleSettings, record: RunRecord, anchors: AnchorSet, selected: SelectedNetworks, task: Task
) -> list[Provenance]:
    facts = record.arguments
    signed = selected.validation_score if task.higher_is_better else -selected.validation_score
    measured = {task.label("validation"): signed, task.label("test"): task.measure(selected.networks, "test")[0]}
    distances = anchors.distances(selected.networks)
    method = SAMPLERS.find(settings.method).provenance + (", refined" if settings.refine else "")
    return [
        Provenance(
            method=method if settings.code == "sane" else f"{method} in the linear code",
            sane_model=facts["sane"] or (BUNDLE.name if settings.sane == str(BUNDLE) else ""),
            sane_revision=facts["sane_revision"],
            sane_subfolder=facts["sane_subfolder"],
            zoo=facts["zoo"] or "",
            zoo_revision=facts["zoo_revision"],
            anchors=anchors.names,
            seed=record.seed,
            index=index,
            bandwidth=facts["bandwidth"],
            bandwidth_unit=settings.unit,
            mode=settings.mode,
            num_candidates=settings.num_candidates,
            nearest_training_distance=distances[index].item(),
            **_scores({name: values[index].item() for name, values in measured.items()}),
        )
        for index in range(selected.networks.num_models)
    ]


def _scores(measured: dict[str, float]) -> dict[str, Any]:
    """Scores as fields of the provenance, where accuracies have fields of their own."""
    if "test_accuracy" in measured:
        return measured
    return {"scores": {name: value for name, value in measured.items() if math.isfinite(value)}}


__all__ = ["SampleResult", "sample"]

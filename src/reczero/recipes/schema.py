"""What a recipe may say. Every key has a type and a line of explanation (docs/recipes.md), and all but a few a default;
unknown keys are mistakes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reczero.data import Origin, PrepareSettings
from reczero.reasoning import RewardName, TemplateSettings

Positive = Annotated[int, Field(ge=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Schedule = Literal["constant", "linear", "cosine"]
SCHEDULE = "of the learning rate after the warmup; linear and cosine fall to zero"
WARMUP = "optimizer steps in which the learning rate rises from zero"
CLIPPED = "longest gradient; a longer one is scaled down"
SAVED = "a checkpoint, to go on from, every so many steps"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class DataRecipe(PrepareSettings):
    dataset: str = Field("ml-100k", description="a data set's name (`reczero data list`) or a prepared folder")
    source: str | None = Field(None, description="how to read `reviews`, instead of a data set: table, amazon2018, …")
    reviews: str | None = Field(None, description="file or URL of the ratings and reviews")
    items: str | None = Field(None, description="file or URL of what is known of the items")
    columns: dict[str, str] = Field({}, description="columns of a table: user, item, rating, timestamp, title, …")
    scale: str | None = Field(None, description="rating scale, MIN-MAX or MIN-MAX:STEP; null finds out")
    encoding: str = Field("utf-8", description="of text files")
    time_format: str | None = Field(None, description="s, ms, us, ns or a strftime format; null finds out")
    train_examples: Positive | None = Field(
        None,
        description="train on this many rows, spread evenly over the training period, always the same; null for all",
    )

    @property
    def origin(self) -> Origin:
        """Which files to read, and how."""
        return Origin(
            None if self.source else self.dataset, self.source, self.reviews, self.items, self.columns, self.scale,
            self.encoding, self.time_format,
        )  # fmt: skip

    @property
    def settings(self) -> PrepareSettings:
        """How to make examples of them."""
        return PrepareSettings(**{key: getattr(self, key) for key in PrepareSettings.model_fields})

    @model_validator(mode="after")
    def _files(self) -> "DataRecipe":
        if self.source and not self.reviews:
            raise ValueError(f"source {self.source} needs reviews, the file to read")
        return self


class Lora(Section):
    rank: Positive = Field(16, description="of the adapters' matrices")
    alpha: Positive = Field(32, description="an adapter is weighed by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of an adapter's inputs that is dropped in training")
    targets: str | list[str] = Field("all-linear", description="module names, or all-linear")


class ModelRecipe(Section):
    name: str = Field(
        "smollm2-135m",
        description="a hub name, a folder, or by name smollm2-135m, smollm2-135m-sft, smollm2-135m-recone",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="of the weights")
    lora: Lora | None = Field(None, description="null trains the weights themselves")
    train_layers: Positive | None = Field(
        None, description="train only this many of the uppermost blocks, or their adapters; null for all"
    )
    gradient_checkpointing: bool = Field(False, description="less memory for a third more arithmetic")

    @model_validator(mode="after")
    def _listed(self) -> "ModelRecipe":
        if self.lora and self.train_layers and isinstance(self.lora.targets, str) and self.lora.targets != "all-linear":
            raise ValueError("with train_layers, lora.targets must be all-linear or a list of module names")
        return self


class RolloutRecipe(Section):
    template: TemplateSettings = TemplateSettings()
    guided: bool = Field(False, description="force the tags, bound the sections, allow only ratings on the scale")
    group_size: int = Field(8, ge=2, description="answers to each prompt (G)")
    temperature: float = Field(1.0, gt=0, description="of sampled answers")
    max_tokens: Positive = Field(1024, description="longest answer; one that is cut off is malformed")
    engine: Literal["shared-prefix", "vllm"] = Field("shared-prefix", description="vllm needs a GPU, and free answers")

    @model_validator(mode="after")
    def _room(self) -> "RolloutRecipe":
        if self.guided and self.engine == "vllm":
            raise ValueError("guided rollouts need engine: shared-prefix")
        return self


class EndpointRecipe(Section):
    model: str = Field(description="the model's name at the endpoint")
    base_url: str | None = Field(None, description="address, ending on /v1; null: OPENAI_BASE_URL of the environment")
    key_from: str = Field("OPENAI_API_KEY", description="environment variable that holds the key")
    temperature: float | None = Field(None, ge=0, description="null leaves it to the server")
    max_tokens: Positive = Field(2048, description="longest answer")
    concurrency: Positive = Field(8, description="requests at once")
    timeout: float = Field(120, gt=0, description="seconds without a sign of life from the server")
    retries: int = Field(5, ge=0, description="further tries after time-outs, 429 and 5xx, ever later")
    price_in: float | None = Field(None, ge=0, description="money for a million tokens of prompts")
    price_out: float | None = Field(None, ge=0, description="money for a million tokens of answers")
    max_cost: float | None = Field(None, gt=0, description="stop before more than this is spent")
    max_total_tokens: Positive | None = Field(None, description="stop before more tokens than this are used")
    extra: dict[str, Any] = Field({}, description="further keys of the request")

    @model_validator(mode="after")
    def _priced(self) -> "EndpointRecipe":
        if self.max_cost is not None and (self.price_in is None or self.price_out is None):
            raise ValueError("max_cost needs price_in and price_out")
        most = self.extra.get("max_completion_tokens", 1)
        if not isinstance(most, int) or most < 1:
            raise ValueError("extra.max_completion_tokens must be a whole number above 0")
        if own := {"model", "messages", "max_tokens", "n", "stream"} & self.extra.keys():
            raise ValueError(f"extra can't set {', '.join(sorted(own))}")
        return self


class TeacherRecipe(Section):
    """Who writes the traces of the cold start, and which are kept."""

    kind: Literal["profile", "endpoint", "policy"] = Field(
        "profile", description="profile writes by rules, endpoint asks a model behind an address, policy is one of ours"
    )
    traces: str | None = Field(None, description="a folder of `reczero teach` to use; null writes them")
    examples: Positive = Field(1000, description="training rows to write about, spread evenly over the period")
    samples: Positive = Field(1, description="answers to each (endpoint, policy)")
    retell: bool = Field(True, description="ask again with the true rating shown where no answer ends on it")
    tolerance: float = Field(0, ge=0, description="how far from the truth a kept trace's rating may lie")
    keep: Literal["first", "confident", "diverse"] = Field("first", description="which of several good answers")
    balance: bool = Field(False, description="keep every rating as often as the rarest")
    endpoint: EndpointRecipe | None = None
    policy: str | None = Field(None, description="the policy that teaches: a run's model folder or a hub name")
    temperature: float = Field(1.0, gt=0, description="of a policy")

    @model_validator(mode="after")
    def _whole(self) -> "TeacherRecipe":
        if self.kind == "endpoint" and self.endpoint is None:
            raise ValueError("kind endpoint needs endpoint.model")
        if self.kind == "endpoint" and self.keep == "confident":
            raise ValueError("keep confident needs kind policy: an endpoint does not say how sure it was")
        if self.kind == "profile" and self.samples > 1:
            raise ValueError("kind profile writes the same answer every time: samples must be 1")
        return self


class SftRecipe(Section):
    """Supervised fine-tuning on the traces; it ends when validation no longer gets better, or with the budget."""

    learning_rate: float = Field(1e-5, gt=0, description="the highest, of AdamW")
    schedule: Schedule = Field("linear", description=SCHEDULE)
    warmup_steps: int = Field(0, ge=0, description=WARMUP)
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description=CLIPPED)
    traces_per_step: Positive = Field(16, description="traces an optimizer step learns from, over all processes")
    traces_per_batch: Positive = Field(4, description="traces in one forward and backward pass; bounds memory")
    epochs: float = Field(3.0, gt=0, le=1e6, description="how often every trace is learned from")
    steps: Positive | None = Field(None, description="stop after this many optimizer steps, whatever the epochs")
    minutes: float | None = Field(None, gt=0, description="stop after the step that passes this; the best is kept")
    belief: float = Field(
        0.0, ge=0, le=1,
        description="how much of the rating's target is what the teacher finds probable (kind: profile), not the truth",
    )  # fmt: skip
    rating_weight: float = Field(1.0, gt=0, description="how many tokens of text the rating counts as in the loss")
    validation_steps: Positive = Field(20, description="validate every so many steps, and at the end")
    patience: Positive | None = Field(3, description="stop after this many validations without a better one")
    save_steps: Positive = Field(50, description=SAVED)

    @model_validator(mode="after")
    def _divides(self) -> "SftRecipe":
        if self.traces_per_step > self.traces_per_batch and self.traces_per_step % self.traces_per_batch:
            raise ValueError("traces_per_step must be a multiple of traces_per_batch")
        return self


class IterateRecipe(Section):
    """Rounds of `method: iterate`: the best policy so far teaches the recipe's own model on new training rows."""

    rounds: Positive = Field(2, description="at most")
    samples: Positive = Field(8, description="answers to each example, of which those that end on the truth count")
    temperature: float = Field(1.0, gt=0, description="of those answers")
    keep: Literal["first", "confident", "diverse"] = Field("confident", description="which of several good answers")
    min_gain: float = Field(
        0.0, ge=0, description="a round that lowers validation MAE by no more than this is the last"
    )


class TrainingRecipe(Section):
    reward: RewardName = Field("paper", description="see reczero.reasoning.reward")
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = Field(
        "grpo", description="how tokens are averaged (TRL's names)"
    )
    learning_rate: float = Field(2e-6, gt=0, description="the highest, of AdamW")
    schedule: Schedule = Field("constant", description=SCHEDULE)
    warmup_steps: int = Field(0, ge=0, description=WARMUP)
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    adam_betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description=CLIPPED)
    rating: Literal["sampled", "expected"] = Field(
        "sampled",
        description="expected: learn at the rating from all of the scale by their probability, not from the drawn one",
    )
    groups_per_step: Positive = Field(8, description="prompts an optimizer step learns from, over all processes")
    stratify: bool = Field(
        False, description="each step draws its prompts evenly from the low to the high ratings: the same on average"
    )
    tokens_per_batch: Positive = Field(
        4096, description="most tokens in one forward and backward pass (a single group may be larger); bounds memory"
    )
    epochs: float = Field(1.0, gt=0, le=1e6, description="how often every training row is answered")
    steps: Positive | None = Field(None, description="stop after this many optimizer steps, whatever the epochs")
    minutes: float | None = Field(None, gt=0, description="stop after the step that passes this")
    keep: Literal["best", "last"] = Field(
        "best",
        description="the step that becomes the model: the best by validation, or the last, where what steps gain is "
        "less than the chance in the validation rows",
    )
    kl: float = Field(0.0, ge=0, description="weight of the KL term (beta)")
    clip: float = Field(0.2, gt=0, description="how far a token's probability ratio may leave 1 (epsilon)")
    advantage_epsilon: float = Field(1e-6, gt=0, description="added to the group's standard deviation")
    save_steps: Positive = Field(25, description=SAVED)
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the order of rows, of sampling and of new adapters")
    report_to: list[Literal["tensorboard", "wandb"]] = Field([], description="where metrics go, beside metrics.jsonl")


class EvaluationRecipe(Section):
    validation_examples: Positive = Field(128, description="rows of the validation period that choose the checkpoint")
    validation_steps: Positive = Field(20, description="validate every so many steps, and at the end")
    test_examples: Positive | None = Field(None, description="rows of the test period, spread evenly; null for all")
    min_user_history: int = Field(0, ge=0, description="only rows whose user has this many earlier ratings")
    min_item_history: int = Field(0, ge=0, description="only rows whose item has this many earlier ratings")
    batch_size: Positive = Field(32, description="answers decoded together")


Method = Literal["reczero", "recone", "sft", "iterate"]


class Recipe(Section):
    """One run.

    method: reczero is reinforcement learning (GRPO) alone; sft learns from a teacher's traces alone; recone does that
    and then GRPO; iterate goes on in rounds with its own policy as the teacher.
    """

    method: Method = Field(description="which stages: docs/teachers.md")
    data: DataRecipe = DataRecipe()  # pyright: ignore[reportCallIssue]
    model: ModelRecipe = ModelRecipe()
    rollout: RolloutRecipe = RolloutRecipe()
    teacher: TeacherRecipe = TeacherRecipe()  # pyright: ignore[reportCallIssue]
    sft: SftRecipe = SftRecipe()  # pyright: ignore[reportCallIssue]
    iterate: IterateRecipe = IterateRecipe()  # pyright: ignore[reportCallIssue]
    training: TrainingRecipe = TrainingRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()

    @model_validator(mode="after")
    def _weighed_as_drawn(self) -> "Recipe":
        r = self.rollout
        if self.training.rating == "expected" and (r.temperature != 1 or r.engine != "shared-prefix"):
            raise ValueError("training.rating expected needs rollout.temperature 1 and rollout.engine shared-prefix")
        return self

    @model_validator(mode="after")
    def _somebody_believes(self) -> "Recipe":
        if self.sft.belief and self.method == "iterate":
            raise ValueError("sft.belief: the rounds of method iterate have no beliefs; only the profile writer has")
        if self.sft.belief and self.teacher.kind != "profile" and not self.teacher.traces:
            raise ValueError(f"sft.belief: teacher.kind {self.teacher.kind} has no beliefs; only profile has")
        return self

    @model_validator(mode="after")
    def _shown_is_kept(self) -> "Recipe":
        for key in ("history", "opinions"):
            if (shown := getattr(self.rollout.template, key)) > self.data.history:
                raise ValueError(
                    f"rollout.template.{key} {shown} shows more than data.history {self.data.history} keeps"
                )
        return self

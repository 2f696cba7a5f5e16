"""What a job asks of the package about its recipe (`tasks`), and what it is answered: a plan of the run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_empg.launch.image import Image
from megatron_empg.launch.job_error import misconfigured
from megatron_empg.launch.job_settings import TrainSettings
from megatron_empg.launch.run_plan import RunPlan
from megatron_empg.launch.slurm_parts import SlurmParts
from megatron_empg.run.names import RunPaths

REFUSED = {
    "check": "nothing was started; fix the above and submit again",
    "check alone": "nothing was started; fix the above and check again",
    "prepare": (
        "this start has begun no process of the run; fix the above and submit again: it goes on from its newest "
        "checkpoint"
    ),
    "plan": (
        "how far the run has come could not be read; what it has trained and saved stands. Fix the above and "
        "submit again: it goes on from its newest checkpoint, or ends at once where all steps are done"
    ),
}
"""What holds, by question (with --check "check alone"), where the image gives no answer."""


@dataclass(frozen=True)
class RecipeQuestions:
    """Each is a process of its own in the image, of seconds."""

    image: Image
    training: TrainSettings

    def check(self) -> RunPlan:
        """Everything that can be known before a step starts; with --check one question is played too.

        Raises JobError once the faults were told.
        """
        play = ["--play"] if self.training.check_only else []
        return self._ask("check", *play)

    def plan(self) -> RunPlan:
        """How far the run is by now. Raises JobError."""
        return self._ask("plan")

    def prepare(self, parts: SlurmParts) -> RunPlan:
        """Write the resolved recipe to the run folder, with addresses of the trainer and of the services that the
        job starts. Raises JobError."""
        words = ["--trainer-address", parts.addresses[parts.placement.trainers[0]]]
        urls = parts.services
        for service in parts.plan.services:
            words += ["--service", f"{service.setting}={urls[service.name]}"]
        return self._ask("prepare", *words)

    def from_converted(self, plan: RunPlan) -> RecipeQuestions:
        """The same for a run whose model is made by the job's first step."""
        model = RunPaths(plan.run_folder).converted_model
        overrides = (*self.training.overrides, f"model.path={model}")
        return replace(self, training=replace(self.training, overrides=overrides))

    def _ask(self, question: str, *options: str) -> RunPlan:
        training = self.training
        words = ["-m", "megatron_empg.launch.tasks", question, training.recipe, *training.overrides]
        answer = self.image.answer([*words, *shape_words(training), *options])
        if answer is None:
            alone = question == "check" and training.check_only
            raise misconfigured(REFUSED["check alone" if alone else question])
        try:
            return RunPlan.from_json(answer)
        except ValueError as error:
            raise misconfigured(f"EMPG_PYTHON answered {answer!r}: {error}") from None


def shape_words(training: TrainSettings) -> list[str]:
    """The job's nodes and data, as `tasks` takes them."""
    shape = training.shape
    words = ["--nodes", str(shape.nodes), "--gpus-per-node", str(shape.gpus_per_node)]
    words += ["--gpu-memory", training.gpu_memory]
    numbers = {
        "--trainer-nodes": shape.trainer_nodes,
        "--rollout-nodes": shape.rollout_nodes,
        "--engines-per-node": shape.engines_per_node,
    }
    for name, number in numbers.items():
        if number is not None:
            words += [name, str(number)]
    if shape.cpu:
        words.append("--cpu")
    if training.data:
        words += ["--data", training.data]
    if training.miniature:
        words.append("--miniature")
    return words

"""Recipe and headers -> Plan, with every problem that can be found before a weight is read.

open -> check -> align -> one task a tensor -> files -> digest. Reads configs, headers and tokenizers only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from safegraft.checkpoint.dtypes import FLOAT_NAMES
from safegraft.checkpoint.sidecars import output_sidecars, sidecar_warnings
from safegraft.checkpoint.types import Checkpoint
from safegraft.checkpoint.weights import natural_order
from safegraft.engine.align import Alignment, align
from safegraft.engine.anatomy import is_multimodal
from safegraft.engine.assembly import Assembly
from safegraft.engine.chat_template import chosen_template, template_warnings, with_template
from safegraft.engine.cost import estimate
from safegraft.engine.embeddings import Embeddings
from safegraft.engine.experts import fuse_experts
from safegraft.engine.identity import manifest, plan_digest, public_names, versions_of
from safegraft.engine.layout import least_shard_size, weight_files
from safegraft.engine.sections import Section, sections_of
from safegraft.engine.settings import check_names, check_values, idle_settings, unmatched
from safegraft.engine.staging import FileDigest
from safegraft.engine.statistics import CalibrationData, requests
from safegraft.engine.task import Plan, PlannedFile, StatisticKey, TensorTask
from safegraft.engine.tasks import TaskBuilder
from safegraft.engine.tokenizer import build_vocabulary
from safegraft.errors import AlignmentError, InputError, PluginError, Problem, RecipeError, UsageError
from safegraft.methods.contract import MergeMethod, Modifier
from safegraft.methods.registry import Registry
from safegraft.recipe.model import Recipe

if TYPE_CHECKING:
    from safegraft.calibration import Request

MAX_SHARD_SIZE = 5 * 10**9  # bytes, as transformers has it
CARD = "README.md"
MANIFEST = "safegraft.json"

OpenModel = Callable[[str], Checkpoint]
FindData = Callable[[str], Path]
Card = Callable[[Plan], bytes]


def make_plan(
    recipe: Recipe,
    open_model: OpenModel,
    registry: Registry,
    *,
    find_data: FindData | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    card: Card | None = None,
) -> Plan:
    """Plan a merge.

    Args:
        open_model: model reference -> checkpoint; raises InputError.
        find_data: the `data` of a calibration set -> its file; raises InputError. None: no data can be had.
        max_shard_size: bytes of tensors a weight file.
        card: renders README.md; without it the result has none.

    Raises RecipeError or InputError with all problems; whatever was opened is then closed.
    """
    if max_shard_size < 1:
        raise UsageError(f"max_shard_size must be at least 1 byte, not {max_shard_size}")
    checkpoints: dict[str, Checkpoint] = {}
    try:
        return _Planner(recipe, registry, checkpoints).run(open_model, find_data, max_shard_size, card)
    except BaseException:
        for checkpoint in checkpoints.values():
            checkpoint.close()
        raise


class _Planner:
    def __init__(self, recipe: Recipe, registry: Registry, checkpoints: dict[str, Checkpoint]) -> None:
        self.recipe = recipe
        self.registry = registry
        self.checkpoints = checkpoints
        self.methods: dict[str, MergeMethod] = {}
        self.modifiers: dict[str, Modifier] = {}
        self.recipe_problems: list[Problem] = []
        self.input_problems: list[Problem] = []
        self.warnings: list[str] = []
        self.remarks: list[str] = []

    def run(self, open_model: OpenModel, find_data: FindData | None, max_shard_size: int, card: Card | None) -> Plan:
        self._check_recipe()
        data = CalibrationData(self.recipe, find_data)
        self.recipe_problems += data.missing(self.methods)
        self.warnings += data.unread(self.methods)
        self._open(open_model)
        if self.input_problems:
            self._stop_on_problems(InputError)
        host_model = self._choose_host()
        assembly = self._put_together(host_model)
        alignments = self._align(host_model, assembly)
        self._stop_on_problems(AlignmentError)
        alignments = self._give_vocabulary(host_model, alignments, assembly)
        tasks = self._tasks(host_model, alignments, assembly)
        statistics = requests(tasks, self.methods, self.checkpoints, data)
        self.input_problems += data.problems
        self.warnings += data.notes
        self._stop_on_problems(AlignmentError)
        return self._assemble(host_model, tasks, statistics, max_shard_size, card)

    def _stop_on_problems(self, kind: type[InputError]) -> None:
        """The recipe's problems and the inputs' are told together; the recipe's decide the exit code."""
        if self.recipe_problems:
            raise RecipeError([*self.recipe_problems, *self.input_problems])
        if self.input_problems:
            raise kind(self.input_problems)

    # -- the recipe against the methods ---------------------------------------------------------

    def _check_recipe(self) -> None:
        asked = [(self.recipe.merge_method, self.recipe.where("merge_method"))]
        asked += [(one.method, self.recipe.where(*one.at, "method")) for one in self.recipe.overrides if one.method]
        for name, where in asked:
            method = self.registry.get(name)
            if method is None:
                self.recipe_problems.append(Problem(where, f"unknown method {name!r}. {self.registry.suggest(name)}"))
            elif name not in self.methods:
                self.methods[name] = method
                self._check_requirements(method, where)
        for entry in self.recipe.modifiers:
            modifier = self.registry.modifiers.get(entry.name)
            if modifier is None:
                where = self.recipe.where(*entry.at, "name")
                hint = self.registry.suggest(entry.name, self.registry.modifiers)
                self.recipe_problems.append(Problem(where, f"unknown modifier {entry.name!r}. {hint}"))
            else:
                self.modifiers[entry.name] = modifier
        takes_base = any(method.requires.base != "forbidden" for method in self.methods.values())
        if self.recipe.modifiers and self.recipe.base_model is None and takes_base:
            where = self.recipe.where("modifiers")
            self.recipe_problems.append(Problem(where, "modifiers change the difference from a `base_model`; name one"))
        self._check_roles()
        if len(self.methods) == len({name for name, _ in asked}):
            self.recipe_problems += check_names(self.recipe, self.methods, self.modifiers)
            self.recipe_problems += check_values(self.recipe, self.methods, self.modifiers)
            self.warnings += idle_settings(self.recipe, self.methods, self.modifiers)

    def _check_roles(self) -> None:
        """Each role belongs to a method here, and to one model."""
        wanted = list(dict.fromkeys(role for method in self.methods.values() for role in method.requires.roles))
        taken: dict[str, str] = {}
        for entry in self.recipe.all_entries():
            if entry.role is None:
                continue
            where = self.recipe.where(*entry.at, "role")
            if entry.role in taken:
                message = f"{entry.role!r} is the role of {taken[entry.role]} already; one model has it"
                self.recipe_problems.append(Problem(where, message))
            elif entry.role not in wanted:
                which = " or ".join(map(repr, wanted)) if wanted else "none"
                names = ", ".join(self.methods) or self.recipe.merge_method
                message = f"{names} has no role {entry.role!r}; a model's role may be {which}"
                self.recipe_problems.append(Problem(where, message))
            taken.setdefault(entry.role, entry.model)
            if entry.model == self.recipe.base_model:
                self.recipe_problems.append(Problem(where, "this is the `base_model`, which has no other role"))

    def _check_requirements(self, method: MergeMethod, where: str) -> None:
        for section in sections_of(self.recipe):
            self._check_section(method, section, self.recipe.where(*section.at) if section.at else where)

    def _check_section(self, method: MergeMethod, section: Section, where: str) -> None:
        needs, base = method.requires, section.base_model
        if needs.base == "required" and base is None:
            self.recipe_problems.append(Problem(where, f"{method.name} needs a `base_model`"))
        if needs.base == "forbidden" and self.recipe.modifiers:
            message = f"{method.name} takes no `base_model`, from which modifiers measure: they cannot be used with it"
            self.recipe_problems.append(Problem(self.recipe.where("modifiers"), message))
        elif needs.base == "forbidden" and base is not None:
            self.recipe_problems.append(Problem(where, f"{method.name} takes no `base_model`; remove it"))
        for role in needs.roles:
            if role not in section.roles:
                message = f"{method.name} needs a model with `role: {role}` among `models`"
                self.recipe_problems.append(Problem(where, message))
        models = list(section.models)
        if needs.base in ("required", "optional"):
            models = [model for model in models if model != base]
            if section.is_slice and base is not None and base not in section.models:
                message = f"the base {base} is not among the sources: list it with its layers"
                self.recipe_problems.append(Problem(where, message))
        elif base is not None and base not in models and not section.is_slice:
            models.append(base)
        what = "models beside the base" if needs.base in ("required", "optional") and base else "models"
        what += " without a role" if needs.roles else ""
        whose = "the slice" if section.is_slice else "the module" if section.at else "the recipe"
        if len(models) < needs.min_inputs:
            self.recipe_problems.append(
                Problem(where, f"{method.name} needs at least {needs.min_inputs} {what}; {whose} has {len(models)}")
            )
        if needs.max_inputs is not None and len(models) > needs.max_inputs:
            self.recipe_problems.append(
                Problem(where, f"{method.name} takes at most {needs.max_inputs} {what}; {whose} has {len(models)}")
            )

    # -- the inputs -----------------------------------------------------------------------------

    def _open(self, open_model: OpenModel) -> None:
        for reference in self.recipe.references():
            try:
                self.checkpoints[reference] = open_model(reference)
                self.warnings += self.checkpoints[reference].notes
                self.remarks += self.checkpoints[reference].remarks
            except InputError as error:
                self.input_problems += error.problems
        twins: dict[tuple[str, str], str] = {}
        for reference, checkpoint in self.checkpoints.items():
            twin = twins.setdefault((checkpoint.identity.scheme, checkpoint.identity.digest), reference)
            if twin != reference:
                self.warnings.append(f"{reference} and {twin} hold the same weights; each counts as a model of its own")

    def _choose_host(self) -> str:
        if self.recipe.host_model is not None:
            return self.recipe.host_model
        merged = list(dict.fromkeys([*self.recipe.inputs(), *self.recipe.bases()]))
        multimodal = [one for one in merged if is_multimodal(self.checkpoints[one].config)]
        base = self.recipe.base_model
        candidates = multimodal or merged
        host = base if base in candidates else candidates[0]
        if len(multimodal) > 1:
            self.warnings.append(
                f"{len(multimodal)} inputs are multimodal; {host} is the host model, whose vision tower, projector, "
                "tokenizer and processor the result keeps where they are not merged. Set `host_model` to choose another"
            )
        return host

    def _put_together(self, host_model: str) -> Assembly:
        """Which models and layers make which part of the result; the host takes the result's layers."""
        assembly = Assembly(self.recipe, host_model, self.checkpoints)
        self.recipe_problems += assembly.problems
        self.warnings += assembly.warnings
        if assembly.problems:
            self._stop_on_problems(AlignmentError)
        self.checkpoints[host_model] = assembly.host
        return assembly

    def _align(self, host_model: str, assembly: Assembly) -> dict[str, Alignment]:
        host = self.checkpoints[host_model]
        maps = self._tensor_maps()
        alignments: dict[str, Alignment] = {}
        for entry in self.recipe.all_entries():
            if entry.model == host_model and entry.tensor_map:
                where = self.recipe.where(*entry.at, "tensor_map")
                self.recipe_problems.append(Problem(where, "has no effect on the host model itself; remove it"))
        for model, checkpoint in self.checkpoints.items():
            if model == host_model:
                continue
            if model not in assembly.members():
                alignments[model] = Alignment()
                continue
            experts = fuse_experts(host, checkpoint)
            self.checkpoints[model] = experts.checkpoint
            names = maps.get(model) or self._mapped(model, host, checkpoint)
            alignments[model] = found = align(
                host,
                experts.checkpoint,
                names,
                keep_vocabulary=self.recipe.embeddings == "host",
                laid=assembly.laid(model),
            )
            problems = [*found.problems, *(experts.misfits if found.problems else ())]
            self.input_problems += [Problem(model, problem) for problem in problems]
            self.warnings += [*experts.notes, *found.notes]
        return alignments

    def _mapped(self, model: str, host: Checkpoint, checkpoint: Checkpoint) -> Mapping[str, str | None]:
        """What the first plugin says that knows how the names of this pair go together."""
        for name in self.registry.tensor_maps.names():
            plugin_map = self.registry.tensor_maps.get(name)
            assert plugin_map is not None  # it was named
            try:
                prefixes = plugin_map.prefixes(host.config, checkpoint.config)
            except Exception as error:  # a plugin may raise anything; it is named
                raise PluginError(f"tensor map {name} failed on {model}: {type(error).__name__}: {error}") from error
            if prefixes is not None:
                self.warnings.append(f"{model}: its tensors' names are mapped by the plugin's tensor map {name}")
                return prefixes
        return {}

    def _give_vocabulary(
        self, host_model: str, alignments: dict[str, Alignment], assembly: Assembly
    ) -> Mapping[str, Alignment]:
        """The vocabulary that the recipe asks for, for all models alike; without one, all keep their own."""
        choice = self.recipe.tokenizer
        if choice is None:
            return alignments
        vocabulary = build_vocabulary(self.recipe, choice, host_model, self.checkpoints)
        given = Embeddings(self.recipe, host_model, self.checkpoints, alignments, assembly, vocabulary)
        self.recipe_problems += given.recipe_problems
        self.input_problems += given.input_problems
        self.warnings += given.warnings
        self._stop_on_problems(AlignmentError)
        self.checkpoints.update(given.checkpoints)
        return given.alignments

    def _tensor_maps(self) -> dict[str, Mapping[str, str | None]]:
        """Each model's own; modules that list a model twice give it one map, or none."""
        maps: dict[str, Mapping[str, str | None]] = {}
        for entry in self.recipe.all_entries():
            known = maps.setdefault(entry.model, entry.tensor_map) or entry.tensor_map
            if entry.tensor_map and entry.tensor_map != known:
                where = self.recipe.where(*entry.at, "tensor_map")
                self.recipe_problems.append(Problem(where, f"{entry.model} has another one elsewhere; give it one"))
            maps[entry.model] = known
        return maps

    # -- tasks and files ------------------------------------------------------------------------

    def _tasks(self, host_model: str, alignments: Mapping[str, Alignment], assembly: Assembly) -> list[TensorTask]:
        builder = TaskBuilder(
            self.recipe, host_model, self.checkpoints, alignments, self.methods, self.modifiers, assembly
        )
        host = self.checkpoints[host_model]
        tasks = [builder.build(host.tensors[name]) for name in sorted(host.tensors, key=natural_order)]
        self.recipe_problems += builder.recipe_problems
        self.input_problems += builder.input_problems
        self.warnings += builder.warnings()
        merged = [task for task in tasks if task.action == "merge"]
        own_names = {assembly.own_name(one.model, one.tensor) for task in merged for one in task.inputs}
        self.warnings += unmatched(self.recipe, {task.name for task in merged}, own_names)
        if not merged and not builder.input_problems and not builder.recipe_problems:
            self.recipe_problems.append(
                Problem(self.recipe.where("models"), "nothing would be merged: no two inputs share a tensor")
            )
        return tasks

    def _assemble(
        self,
        host_model: str,
        tasks: Sequence[TensorTask],
        statistics: "Mapping[StatisticKey, Request]",
        max_shard_size: int,
        card: Card | None,
    ) -> Plan:
        host = self.checkpoints[host_model]
        dtype = self.recipe.out_dtype or self.recipe.dtype
        self.warnings += sidecar_warnings(host)
        files = weight_files(tasks, max_shard_size)
        sidecars = output_sidecars(host, FLOAT_NAMES[dtype] if dtype else None)
        template = chosen_template(self.recipe, self.checkpoints)
        self.warnings += template_warnings(self.recipe, host, template)
        for name, content in sorted((with_template(sidecars, template) if template else sidecars).items()):
            files.append(PlannedFile(name, len(content), "sidecar", content=content))
        names = public_names({reference: self.checkpoints[reference].sources for reference in self.recipe.references()})
        versions = versions_of(self.methods, self.modifiers, self.registry)
        digest = plan_digest(self.recipe, host_model, names, self.checkpoints, versions, files, statistics)
        plan = Plan(
            recipe=self.recipe,
            digest=digest,
            host_model=host_model,
            names=names,
            checkpoints=self.checkpoints,
            methods=self.methods,
            modifiers=self.modifiers,
            statistics=statistics,
            versions=versions,
            tensors=tuple(tasks),
            files=tuple(files),
            warnings=tuple(dict.fromkeys(self.warnings)),
            remarks=tuple(dict.fromkeys(self.remarks)),
            cost=estimate(tasks, self.checkpoints, self.methods),
            total_size=0,
        )
        if card is not None:
            text = card(plan)
            files.append(PlannedFile(CARD, len(text), "card", content=text))
        blank = {file.name: FileDigest(file.size, "0" * 64) for file in files}
        least = least_shard_size(files)
        size = len(manifest(self.recipe, digest, host_model, names, self.checkpoints, versions, blank, least))
        files.append(PlannedFile(MANIFEST, size, "manifest"))
        return replace(plan, files=tuple(files), total_size=sum(file.size for file in files))

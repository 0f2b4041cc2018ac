"""Which visual tokenizer serves which image or video of a conversation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmblocks.components import VisionTokenizer
from mmblocks.errors import DataError
from mmblocks.faults import Fault
from mmblocks.shapes import SCENARIOS, RoutedPlan, Scenario, VisualShape


@dataclass(frozen=True, slots=True)
class Router:
    """A model's tokenizers by scenario. A conversation's only image goes to `image`, several go to `multi_image`
    (videos beside them do not count), and every video goes to `video`.
    """

    image: VisionTokenizer[Any]
    multi_image: VisionTokenizer[Any]
    video: VisionTokenizer[Any]

    def select_tokenizer(self, scenario: Scenario) -> VisionTokenizer[Any]:
        return {"image": self.image, "multi_image": self.multi_image, "video": self.video}[scenario]

    @property
    def learned_tokens(self) -> tuple[str, ...]:
        """Every learned token that some scenario inserts, each once, in order of first use."""
        return tuple(dict.fromkeys(name for s in SCENARIOS for name in self.select_tokenizer(s).learned_tokens))

    def find_faults(self) -> list[Fault]:
        """Why these tokenizers cannot serve their scenarios; keys begin with the scenario."""
        faults = []
        for scenario in SCENARIOS:
            tokenizer = self.select_tokenizer(scenario)
            if scenario in tokenizer.scenarios:
                faults += [fault.move_below(scenario) for fault in tokenizer.find_faults()]
            else:
                serves = ", ".join(sorted(tokenizer.scenarios))
                message = f"{type(tokenizer).__name__} does not serve this scenario, only {serves};"
                faults.append(Fault(scenario, f"{message} choose another tokenizer."))
        return faults

    def plan(self, visuals: Sequence[VisualShape]) -> tuple[RoutedPlan, ...]:
        """Plans for all images and videos of one conversation, in their order."""
        for_images: Scenario = "image" if sum(v.kind == "image" for v in visuals) == 1 else "multi_image"
        plans = []
        for number, visual in enumerate(visuals, start=1):
            scenario: Scenario = "video" if visual.kind == "video" else for_images
            which = f"visual {number} ({visual.kind})"
            if min(visual.size) < 1:
                raise DataError(f"{which} is {visual.size} pixels; replace the file, it shows nothing.")
            plan = self.select_tokenizer(scenario).plan(visual)
            if visual.note and not any(visual.note in text for _, text in plan.inline_texts):
                raise DataError(
                    f"{which} has the note {visual.note!r}, which the tokenizer of {scenario} does not write; "
                    "write it into the conversation's text, or choose 'scene_views'."
                )
            plans.append(RoutedPlan(scenario, plan))
        return tuple(plans)

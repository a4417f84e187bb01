"""What a benchmark's results are: the measures of a video, and values by row and caption."""

from collections.abc import Mapping

from evaluation.compare.statistics import Estimate

TRUTH = "true videos"
METRICS = {  # measure -> whether more is better (1), less (-1), or neither (0)
    "revisit consistency": 1,
    "new content": 0,
    "motion": 0,
    "revisit error": -1,
    "came back": 1,
    "objects kept": 1,
    "objects in the first pass": 1,
    "colours in the first pass": 1,
    "subject kept": 1,
    "ground and time kept": 1,
    "motion plausible": 1,
    "camera as trained": 1,
    "drift": -1,
}
DIRECTIONS = {1: "more is better", -1: "less is better", 0: "as in true videos"}
Unit = tuple[int, int]  # prompt, sample
Found = Mapping[Unit, Mapping[str, float | None]]  # video -> measure -> value
Values = Mapping[str, Mapping[str, dict[int, float]]]  # row -> measure -> prompt -> mean over its samples
Means = Mapping[str, Mapping[str, Estimate]]  # row -> measure -> mean over prompts

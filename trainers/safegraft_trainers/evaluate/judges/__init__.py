"""Who says whether an answer does harm or refuses.

A judge is named by a spec: "patterns[:LIST]", "knowledge", "classifier:MODEL", "endpoint:URL#MODEL".

patterns.py    refusals by published lists of phrases
knowledge.py   harm by the answer that is known to be harmful
classifier.py  a classifier or a guard model, through transformers
guards.py      the prompts of guard models, and how their replies read
endpoint.py    an LLM behind an OpenAI-compatible endpoint
"""

from safegraft_trainers.evaluate.judges.judge import Judge, Verdict, get_judge

__all__ = ["Judge", "Verdict", "get_judge"]

"""What a reranker is asked of a question and a passage: its next word is Yes or No.

A: question / B: passage / prompt, a line each, as FlagEmbedding's rerankers are trained; the paper shows them titles.
"""

from typing import Literal, get_args

from moe_retrieval.genpoe.examples import Passage

By = Literal["passage", "title"]
KINDS = get_args(By)

PROMPTS = {
    "passage": "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
    "providing a prediction of either 'Yes' or 'No'.",
    "title": "Given a query A and a title B, determine whether the title is relevant to the query by providing a "
    "prediction of either 'Yes' or 'No'.",
}
"""What is shown of a passage -> the prompt of the sources"""

YES, NO = "Yes", "No"


def shown(passage: Passage, by: str) -> str:
    """What the reranker sees of a passage."""
    return passage.title.strip() if by == "title" else f"{passage.title} {passage.text}".strip()

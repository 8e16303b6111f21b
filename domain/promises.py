"""Promises: the words of a guarantee."""

from domain.losses import Goal


def promise(target: Goal, *, n: int, metric: str = "the workload's metric") -> str:
    """The words of the guarantee, as they are to be printed."""
    same = "agreement with the strong model's answers; it is not about correctness"
    bound = {
        "absolute": f"the expected quality of the deployed cascade, as measured by {metric}, is at least that of the "
        f"strong model minus {target.eps:g}",
        "relative": f"the expected quality of the deployed cascade, as measured by {metric}, is at least "
        f"{1 - target.eps:g} times that of the strong model",
        "agreement": "the expected share of requests whose cheap answer is kept and differs from the strong model's "
        f"is at most {target.eps:g} (this is {same})",
    }[target.kind]
    return (
        f"If future requests are drawn from the same distribution as the {n} calibration rows and are served by the "
        f"same model versions, prompts and decoding settings, then with probability at least {1 - target.delta:g} over "
        "the draw of those rows, either Headrace reported not certified (and routes everything to the strong model), "
        f"or {bound}. This is a statement about the average over requests, not about each request or each subgroup; it "
        "is exact for the sample size used, makes no assumption on the confidence score, and says nothing about cost "
        "(whose estimate and interval are reported) nor about the metric's own errors."
    )

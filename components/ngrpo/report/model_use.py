"""What the page of a model version says: where its files are, and how to use them."""

from __future__ import annotations


def model_use(model: str, version: int, location: str, digest: str) -> str:
    """Return it as Markdown.

    Args:
        model: The registered model.
        version: Its version.
        location: Where its files are.
        digest: Their digest.
    """
    return "\n".join(
        [
            f"Files: `{location}`, sha256 `{digest}`.",
            "",
            "```",
            f"ngrpo export {version} DIR --model {model}   # for transformers and vLLM",
            f"ngrpo chat {version} --model {model}",
            f"ngrpo exec mlflow models serve -m models:/{model}/{version} --env-manager local",
            "```",
        ]
    )

"""An independent forward pass over mixed inputs: one-hot products with the embedding matrix."""

import torch


def one_hot_logps(model: torch.nn.Module, batch: dict, temperature: float) -> torch.Tensor:
    """Return the log-probabilities of the labels of a rollout batch on its mixed inputs, `[rows, columns]`.

    Args:
        model: The model.
        batch: A rollout batch as `NGRPOTrainer` makes it, with mixed steps.
        temperature: Temperature of the logits.
    """
    matrix = model.get_input_embeddings().weight
    columns = batch["completion_ids"].shape[1]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    selection = torch.nn.functional.one_hot(ids, len(matrix)).float()
    for row, column in batch["mix_mask"].nonzero().tolist():
        selection[row, ids.shape[1] - columns + column] = 0
        for token, weight in zip(batch["mix_candidates"][row, column], batch["mix_weights"][row, column], strict=True):
            selection[row, ids.shape[1] - columns + column, token] += weight
    logits = model(inputs_embeds=selection @ matrix, attention_mask=mask).logits[:, -columns - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(2, batch["completion_ids"][..., None])[..., 0]

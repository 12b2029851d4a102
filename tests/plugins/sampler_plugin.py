"""A new sampler: midpoints between pairs of anchors."""

import torch

from hf_sane.sampling import SamplingTask, SelectedNetworks, keep_best, register_sampler


@register_sampler("midpoints")
def keep_midpoints(task: SamplingTask) -> SelectedNetworks:
    """Decode midpoints of random pairs of anchors, and keep the best on validation images."""

    def draw(count: int) -> tuple[torch.Tensor, object]:
        pairs = torch.randint(len(task.anchors), (2, count), generator=task.generator)
        latents = task.anchors[pairs].mean(dim=0)
        return latents, task.codec.decode(latents)

    return keep_best(draw, task.judge, num_candidates=task.num_candidates, num_samples=task.num_samples)

"""Reptile: a start from which a few steps on few images reach further than from the ancestor."""

import paper_reptile
import torch
from children_prompts import Choice, Family, Weights, draw_examples, search
from paper_reptile import adapt, choose_start, learn_start


def test_a_learned_start_is_one_per_ancestor_and_better_on_its_tasks(family, monkeypatch):
    zoo, data = family
    found = Family.open(zoo)
    monkeypatch.setattr(paper_reptile, "ROUNDS", 6)
    start = learn_start(found, data, 2, rate=1e-2, seed=0)
    assert start.shape == found.ancestors.shape
    assert not torch.allclose(start[0], start[1])
    assert torch.equal(start, learn_start(found, data, 2, rate=1e-2, seed=0))
    children = found.splits["train"]
    examples = draw_examples(data, "validation", children.shifts, count=50)

    def loss(changes):
        (fitted,) = search(
            found,
            Weights(),
            children.ancestor,
            changes,
            draw_examples(data, "train", children.shifts, per_class=2, seed=9),
            rate=1e-2,
            scale=1.0,
            steps=(3,),
        )
        return examples.losses(found.networks(children.ancestor, fitted)).mean()

    assert loss(start[children.ancestor]) < loss(torch.zeros_like(children.changes))


def test_the_choice_is_the_best_on_validation_and_may_be_no_step(family, monkeypatch):
    zoo, data = family
    found = Family.open(zoo)
    children = found.splits["validation"]
    monkeypatch.setattr(paper_reptile, "WEIGHT_RATES", (1e-2, 10.0))
    monkeypatch.setattr(paper_reptile, "STEPS", (2,))
    prompt = draw_examples(data, "train", children.shifts, per_class=1)
    examples = draw_examples(data, "validation", children.shifts, count=50)
    starts = {0.1: torch.zeros_like(found.ancestors), 0.2: 5 + torch.zeros_like(found.ancestors)}
    monkeypatch.setattr(paper_reptile, "search", lambda *args, steps=(2,), **kwargs: [args[3] + kwargs["rate"]])
    chosen = choose_start(found, starts, prompt, children, examples)
    assert chosen.settings["inner_rate"] == 0.1
    assert chosen.settings["steps"] in (0, 2)
    assert isinstance(chosen, Choice)
    own = adapt(found, children, prompt, starts[0.2], {"steps": 0, "rate": 0.0})
    assert torch.equal(own, torch.full_like(own, 5.0))

"""SANE under `transformers.Trainer`: nothing but a data set is needed."""

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel


class Windows(Dataset):
    """Low-rank windows with two noisy views."""

    def __init__(self, size, seed):
        generator = torch.Generator().manual_seed(seed)
        rank = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
        clean = torch.randn(size, 5, 3, generator=generator) @ rank
        noise = torch.randn(2, *clean.shape, generator=generator) * 0.1
        self.columns = {
            "tokens": clean * (1 + noise[0]),
            "positions": torch.arange(5)[None, :, None].expand(size, 5, 3),
            "weight_mask": torch.ones_like(clean, dtype=torch.bool),
            "target_tokens": clean,
            "second_tokens": clean * (1 + noise[1]),
            "second_target_tokens": clean,
        }

    def __len__(self):
        return len(self.columns["tokens"])

    def __getitem__(self, index):
        return {name: column[index] for name, column in self.columns.items()}


def test_trainer_trains_evaluates_and_accumulates(tmp_path):
    torch.manual_seed(0)
    config = SANEConfig(
        token_dim=6, hidden_size=12, latent_dim=3, num_hidden_layers=1, num_attention_heads=2, window_size=5
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        max_steps=30,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=30,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(SANEModel(config), arguments, train_dataset=Windows(64, 1), eval_dataset=Windows(16, 2))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert after < 0.5 * before
    assert len(logged) == 30
    assert logged[0] == pytest.approx(before, rel=0.5)  # a mean over accumulation steps, not their sum
    loaded, info = SANEModel.from_pretrained(tmp_path / "checkpoint-30", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), trainer.model.parameters(), strict=True))

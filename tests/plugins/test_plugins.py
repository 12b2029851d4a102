"""What other packages can add, each as one file: docs/explanation/architecture.md shows these very files."""

ARCHITECTURE = """
import architecture_plugin
import hf_sane
from transformers import AutoModelForImageClassification

zoo = hf_sane.build_zoo(
    "digits", architecture="gated_mlp", num_models=6, epochs=1, train_limit=64, token_dim=20, output="zoo",
    architecture_settings={"hidden_size": 3}, progress_bar=False,
)
network = zoo.splits["train"].model(0)
assert type(network) is architecture_plugin.GatedMLP, type(network)
network.save_pretrained("network")
again = AutoModelForImageClassification.from_pretrained("network")
assert type(again) is architecture_plugin.GatedMLP
assert hf_sane.load_zoo("zoo").alignment is not None
small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "latent_dim": 4}
sane = hf_sane.pretrain(zoo, max_steps=2, batch_size=3, model=small, output="run", progress_bar=False, log_with="none")
print(sorted(hf_sane.probe(zoo, sane, properties=["epoch"], poolings=["mean"]).table["epoch"]), len(zoo))
"""


def test_an_architecture(run_python):
    assert run_python(ARCHITECTURE).splitlines()[-1] == "['layer_statistics', 'sane_best', 'sane_mean', 'weights'] 12"

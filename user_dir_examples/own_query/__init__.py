"""A user dir of one's own on top of pkm_fairseq: memories whose queries two layers make."""

from fairseq.models import register_model, register_model_architecture
from torch import nn

from pkm_fairseq.models import PKMRobertaModel
from pkm_fairseq.models.roberta import pkm_roberta_architecture
from pkm_fairseq.modules import ProductKeyMemory


class MLPQueryMemory(ProductKeyMemory):
    """A memory whose query network has a hidden layer, as wide as its input."""

    def build_query(self, input_dim, query_dim):
        hidden = nn.Linear(input_dim, input_dim)
        return nn.Sequential(hidden, nn.GELU(), nn.Linear(input_dim, query_dim))


@register_model("mlp_query_roberta")
class MLPQueryRobertaModel(PKMRobertaModel):
    """RoBERTa with such memories; its options are those of pkm_roberta."""

    memory_class = MLPQueryMemory


register_model_architecture("mlp_query_roberta", "mlp_query_roberta")(pkm_roberta_architecture)

from .pkm_roberta import PKMRobertaEncoder, PKMRobertaModel

__all__ = ["PKMRobertaEncoder", "PKMRobertaModel"]

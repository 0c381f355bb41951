from .roberta import PKMRobertaEncoder, PKMRobertaModel

__all__ = ["PKMRobertaEncoder", "PKMRobertaModel"]

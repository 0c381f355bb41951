"""``python -m pkm_fairseq.report``: one page that shows how checkpoints use their memories."""

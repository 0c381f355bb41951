"""``python -m pkm_fairseq`` is the command ``pkm-fairseq``."""

from pkm_fairseq.commands.cli import main

if __name__ == "__main__":
    main()

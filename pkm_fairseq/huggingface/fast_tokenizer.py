"""Makes a tokenizer.json whose numbers are those of a dictionary of fairseq."""

import json

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.text.tokenizer_json import symbol_of

ROLES = {
    "<s>": ("cls_token", "bos_token"),
    "<pad>": ("pad_token",),
    "</s>": ("sep_token", "eos_token"),
    "<unk>": ("unk_token",),
    "<mask>": ("mask_token",),
}
UNUSED_SCORE = -1e4  # of what stands in the dictionary and no text is cut into


def dictionary_name(token, number):
    """Returns what fairseq's dictionary calls a token, whose symbols have no white space in them.

    Args:
        token: of a ``tokenizer.json``.
        number: the token's there.
    """
    return f"madeupword_{number}" if any(map(str.isspace, token)) else symbol_of(token)


def write_renumbered(source, dictionary, dest, separators):
    """Writes a ``tokenizer.json`` to be used with the rows of fairseq's embeddings.

    Args:
        source: path of the model's own file.
        dictionary: fairseq's, <mask> included.
        dest: path to write.
        separators: how many </s> stand between two sentences.

    Returns:
        What tokenizer_config.json has to say of the special tokens, by role.

    Raises:
        RefusalError: if the dictionary lacks tokens of the file.
    """
    content = json.loads(source.read_text(encoding="utf-8"))
    old = Tokenizer.from_str(json.dumps(content)).get_vocab(with_added_tokens=True)
    lacking = [token for token in old if dictionary_name(token, old[token]) not in dictionary]
    if lacking:
        raise RefusalError(f"{source}: the dictionary lacks {len(lacking)} of its tokens")
    new = {token: dictionary.index(dictionary_name(token, old[token])) for token in old}
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: new[token] for token in model["vocab"]}
    else:  # unigram's: a list of tokens and scores by number
        scores = {new[token]: [token, score] for token, score in model["vocab"]}
        unused = ([symbol, UNUSED_SCORE] for symbol in dictionary.symbols)
        model["vocab"] = [scores.get(i, fill) for i, fill in enumerate(unused)]
        model["unk_id"] = dictionary.unk()
    for token in content["added_tokens"]:
        token["id"] = new[token["content"]]
    content.update(padding=None, truncation=None, post_processor=None)
    tokenizer = Tokenizer.from_str(json.dumps(content))
    names = {symbol: token for token in old for symbol in [symbol_of(token)] if symbol in ROLES}
    first, last = names["<s>"], names["</s>"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {' '.join([last] * separators)} $B {last}",
        special_tokens=[(first, dictionary.bos()), (last, dictionary.eos())],
    )
    tokenizer.save(str(dest))
    return {role: names[symbol] for symbol, roles in ROLES.items() for role in roles}

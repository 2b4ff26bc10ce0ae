"""Right and wrong answers to the exercises of *The cost of a copy*."""

RIGHT = {
    "cost-1": lambda frozen, trained: 2 * frozen + 16 * trained,
    "cost-2": lambda card, model, adapter: (card // model, max(card - model, 0) // adapter),
}
WRONG = [
    ("cost-1", lambda f, t: 4 * f + 16 * t, "bfloat16"),
    ("cost-1", lambda f, t: 2 * f + 12 * t, "more than one number"),
    ("cost-1", lambda f, t: 2 * f + 8 * t, "besides weight and gradient"),
    ("cost-1", lambda f, t: 16 * (f + t), "no gradient"),
    ("cost-1", lambda f, t: 2.0 * f + 16 * t, "should be an int"),
    ("cost-1", lambda f, t: 2 * f + 17 * t, "number of bytes is too large"),
    ("cost-2", lambda card, model, adapter: (card // model, card // adapter), "something else"),
    ("cost-2", lambda card, model, adapter: (card // model, card // (model + adapter)), "share one model"),
    ("cost-2", lambda card, model, adapter: (card // model, (card - model) // adapter), "does not fit"),
    ("cost-2", lambda card, model, adapter: (max(card - model, 0) // adapter, card // model), "other way round"),
    ("cost-2", lambda card, model, adapter: (-(-card // model), 5), "Too many full copies"),
    (
        "cost-2",
        lambda card, model, adapter: (card // model, max(card - model, 0) // adapter + 1),
        "adapters is too large",
    ),
    ("cost-2", lambda card, model, adapter: card // model, "two numbers"),
    ("cost-2", lambda card, model, adapter: (card / model, (card - model) / adapter), "should be an int"),
]

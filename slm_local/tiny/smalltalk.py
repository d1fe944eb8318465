"""What else do people type? Greetings, and a wide variety of questions that are out of scope.

Templates and fillers are split, so that a test prompt shares neither whole wording nor topic with training.
"""

from random import Random

from slm_local.tiny.materials import KNOWN, Pieces, pseudo_word
from slm_local.tiny.problems import Chat

GREETINGS = (
    "Hi", "Hi!", "Hello", "Hello!", "Hey", "Hey there!", "Good morning", "Good evening!", "hello there", "Hi there",
    "Who are you?", "What are you?", "What can you do?", "How are you?", "Help", "What is this?", "Are you there?",
    "Tell me about yourself.", "Introduce yourself.", "What model are you?", "What do you know?", "Good day!",
)  # fmt: skip

_TEMPLATES = (
    "What is the population of {place}?", "Where is {place}?", "Tell me about {place}.",
    "What language is spoken in {place}?", "Who founded {place}?", "What is {place} famous for?",
    "Which river flows through {place}?", "Is {place} a country?", "How do I get to {place}?",
    "What is the weather in {place}?", "Name the largest city of {place}.", "When was {person} born?",
    "What did {person} do?", "Tell me about {person}.", "Why is {person} famous?", "Where did {person} live?",
    "Is {person} still alive?", "Who is {person}?", "What would {person} say about {topic}?", "What is {topic}?",
    "How does {topic} work?", "Tell me about {topic}.", "Why is {topic} important?",
    "Describe {topic} in simple words.", "Who invented {topic}?", "What do you think about {topic}?",
    "Define {topic}.", "Give me an example of {topic}.", "What are the advantages of {topic}?",
    "Summarize {topic}.", "Explain {topic} to a child.", "Write a story about {topic}.",
    "Write an essay on {topic}.", "Write a song about {topic}.", "Tell me a joke about {topic}.",
    "Make a list of books about {topic}.", "Write a letter to {person}.", "Write a haiku about {topic}.",
    "Write an email about {topic}.", "Write a {language} program that {task}.", "How do I {task} in {language}?",
    "Fix this {language} code.", "Write a function in {language} that {task}.", "What is a list in {language}?",
    "Is {language} better than {topic}?", "Translate '{thing}' into {tongue}.",
    "How do you say {thing} in {tongue}?", "Translate this sentence into {tongue}.",
    "What is the opposite of {thing}?", "What rhymes with {thing}?", "How do you spell {thing}?",
    "Give me a synonym for {thing}.", "What color is {thing}?", "How many letters are in {thing}?",
    "What is {thing} made of?", "Where can I buy {thing}?", "How do I cook {thing}?", "Do you like {thing}?",
    "Can I eat {thing}?", "How much does {thing} cost?", "Which is better, {thing} or {thing2}?",
    "Which is heavier, a {animal} or a {animal2}?", "Which is faster, a {animal} or a {animal2}?",
    "How long does a {animal} live?", "What does a {animal} eat?", "Can a {animal} swim?",
    "Is a {animal} bigger than a {animal2}?", "What should I eat today?", "Can you help me with my homework?",
    "Tell me a joke.", "What is your favorite {thing}?", "I feel sad.", "I am bored.", "Do you love me?",
    "Are you human?", "Play a game with me.", "What day is it?", "What time is it?", "Thank you!", "ok", "yes",
    "no", "why?", "continue", "test", "asdf", "Please explain.", "{thing}", "{topic}", "{place}",
    "When did {event} happen?", "Who won {event}?", "What caused {event}?", "How long did {event} last?",
    "What is the best movie of {year}?", "What happened in {year}?", "Who was president in {year}?",
    "Is it true that {thing} can {task}?", "Give me advice about {topic}.", "Recommend a book about {topic}.",
    "What is the meaning of {topic}?", "Should I {task}?", "How do I {task}?", "Why do people {task}?",
)  # fmt: skip
_UNSEEN_TEMPLATES = (
    "What is the capital of {place}?", "Write a poem about {topic}.", "Who was {person}?", "Explain {topic}.",
    "How old is {person}?", "Can you recommend a hotel in {place}?", "Give three facts about {topic}.",
    "What are the rules of {topic}?", "Plan a weekend in {place}.", "Sort this list in {language}.",
    "Which president came after {person}?", "Is {topic} dangerous?", "Convert {thing} to {tongue}.",
    "Draw a picture of a {animal}.", "How far away is {place}?", "What is the history of {place}?",
    "Do you believe in {topic}?", "Why does a {animal} sleep?", "Who wrote about {event}?",
    "Please teach me {language}.",
)  # fmt: skip
_FILLERS = {
    "place": "Spain|Italy|Berlin|London|China|Japan|Brazil|Canada|Texas|Rome|Egypt|Kenya|Sweden|Norway|Madrid"
    "|Moscow|India|Peru|Chicago|Vienna|Greece|Turkey|Cuba|Oslo|Lisbon|New York|South Africa|the Alps"
    "|Mars|the moon",
    "person": "Newton|Mozart|Napoleon|Caesar|Shakespeare|Lincoln|Darwin|Goethe|Beethoven|Picasso|Cleopatra"
    "|Gandhi|Galileo|Plato|Obama|Tesla|Bach|Washington|Churchill|Columbus|the king|my teacher"
    "|the first president|Elvis",
    "topic": "gravity|democracy|photosynthesis|music|the internet|love|chess|football|history|climate change"
    "|evolution|the brain|physics|money|war|autumn|the stars|school|dreams|robots|electricity"
    "|the economy|philosophy|art|a quiet night|friendship|machine learning|quantum mechanics"
    "|the black hole|a sorting algorithm|vaccines|the alphabet|religion|rain|happiness",
    "language": "Python|Java|Rust|C|JavaScript|Go|SQL|Ruby|Perl",
    "task": "reads a file|sort a list|find a job|learn to dance|prints hello|make a cake|sleep better"
    "|open a window|fly a plane|reverse a string|save money|write a test|lie|swim|fix a bike"
    "|build a house|count words",
    "tongue": "German|Spanish|Italian|Latin|Chinese|Greek|Dutch",
    "animal": "cat|dog|horse|lion|tiger|bear|fish|bird|cow|pig|rabbit|snake|wolf|fox|goat|shark|mouse|elephant"
    "|frog|duck",
    "event": "the second world war|the French revolution|the moon landing|the world cup|the last election"
    "|the plague|the gold rush|the Olympics|the fall of Rome",
}  # fmt: skip
_UNSEEN_FILLERS = {
    "place": "France|Australia|Paris|Tokyo|Argentina|Poland|Ireland|Mexico City|Finland|Venus",
    "person": "Einstein|Marie Curie|Leonardo da Vinci|Kant|Queen Victoria|Alan Turing|Mandela|Dante",
    "topic": "the sea|recursion|inflation|volcanoes|yoga|blockchain|spring|justice|DNA|poetry"
    "|the theory of relativity|baseball",
    "language": "Haskell|TypeScript|Bash|Kotlin",
    "task": "draw a circle|plays music|clean a window|run faster|merges two files",
    "tongue": "French|Japanese|Polish|Arabic",
    "animal": "zebra|whale|giraffe|owl|camel|penguin",
    "event": "the industrial revolution|the Titanic disaster|the cold war|the Super Bowl",
}  # fmt: skip


def draw_greeting(rng: Random) -> Chat:
    """Return a greeting; the list is the same on both sides, so greetings are memorised."""
    return Chat(text=rng.choice(GREETINGS), greeting=True)


def draw_out_of_scope(rng: Random, pieces: Pieces) -> Chat:
    """Return a training question that gets the refusal: a third are sums beyond the range, the rest general."""
    if rng.random() < 0.33:
        return draw_beyond_range(rng)
    template = rng.choice(_TEMPLATES)
    if rng.random() < 0.1:
        template = f"{rng.choice(_TEMPLATES).rstrip('?.!')}, and {template[0].lower()}{template[1:]}"
    return Chat(text=_fill(template, rng, _FILLERS, pieces), greeting=False)


def draw_unseen_question(rng: Random) -> Chat:
    """Return a general question for tests: its topic, and half of the time its wording, is not in training."""
    with_topic = tuple(text for text in _TEMPLATES if any(f"{{{slot}}}" in text for slot in _UNSEEN_FILLERS))
    template = rng.choice(rng.choice((_UNSEEN_TEMPLATES, with_topic)))
    return Chat(text=_fill(template, rng, _UNSEEN_FILLERS, Pieces()), greeting=False)


def _fill(template: str, rng: Random, fillers: dict[str, str], pieces: Pieces) -> str:
    slots = {name: rng.choice(values.split("|")) for name, values in fillers.items()}
    if pieces.rest:
        for name in ("place", "person", "topic", "task", "animal"):
            if rng.random() < 0.4:
                word = " ".join(pseudo_word(rng, pieces) for _ in range(rng.randint(1, 2)))
                slots[name] = word.title() if name in ("place", "person") else word
    slots["thing"], slots["thing2"] = rng.sample(KNOWN, 2)
    slots["animal2"] = rng.choice(fillers["animal"].split("|"))
    return template.format(**slots, year=rng.randint(1500, 2030))


def draw_beyond_range(rng: Random) -> Chat:
    """Return a sum that the model does not do; the two sides are not split."""
    return Chat(text=_beyond_range(rng), greeting=False)


def _beyond_range(rng: Random) -> str:
    small, other, third = (rng.randint(2, 99) for _ in range(3))
    big, wide = rng.randint(1000, 99999), rng.randint(100, 999)
    operation = rng.choice("+-*x")
    return rng.choice(
        (
            f"What is {big} {operation} {small}?",
            f"What is {wide} {operation} {big}?",
            f"{big}{rng.choice('+-')}{big + small}",
            f"How much is {big} plus {wide}?",
            f"What is {wide} x {other}?",
            f"{wide} * {rng.randint(100, 999)}",
            f"What is {small * other} / {small}?",
            f"{wide} divided by {other}",
            f"Divide {wide} by {small}.",
            f"What is {small} percent of {wide}?",
            f"What is the square root of {wide}?",
            f"{small} to the power of {other % 9 + 2}",
            f"{small} + {other} + {third}",
            f"What is {small} {operation} {other} {rng.choice('+-*')} {third}?",
            f"What is half of {wide}?",
            f"Is {small} a prime number?",
            f"What is {small}.{other} + {third}.{small}?",
            f"How many seconds are in {small} hours?",
            f"Solve x + {small} = {other}.",
            f"Count to {small}.",
        )
    )

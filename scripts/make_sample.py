"""Write the made-up sample tweets in ``data/sample_tweets.csv``.

Every text comes out of the small grammar below. They are made-up texts, nobody's words: no
person, account or post stands behind them. They are good for a first contact with the tool and
for its tests, because they are small, free to share and the same on every machine. They are not
good for judging models: the vocabulary is narrow, the sentence patterns are few and regular, and
a score on them says nothing about a score on real tweets.

The file has the layout of the original Sentiment140 file: ISO-8859-1, no header, six quoted
columns (label 0 or 4, id, date, query, user, text), all negatives before all positives.

What makes them harder than counting words is negation ("was not bad at all") and contrast ("the
film was dull but the company made my evening"), where the main clause, or the one after "but",
decides. ``LABEL_NOISE`` of the rows carry the label opposite to what the text says.
"""

import argparse
import csv
import random
import re
from collections.abc import Sequence
from pathlib import Path

OUTPUT = Path(__file__).resolve().parent.parent / "data" / "sample_tweets.csv"
LABELS = {"bad": "0", "good": "4"}
OPPOSITE = {"bad": "good", "good": "bad"}

LABEL_NOISE = 0.03  # the share of each class that is labelled against what its text says
MIN_WORDS, MAX_WORDS = 3, 35

# How often a text states its sentiment in each of these ways (out of 100).
SHAPES = {"plain": 75, "double": 10, "negated": 5, "contrast": 9, "sarcasm": 1}
NEGATED_CLAUSES = 0.05  # the share of negated clauses in texts of two clauses

# A table is a text of lines "key: phrase / phrase / ...". In a phrase, {key} stands for a phrase of
# that key, or of "good key" or "bad key", whichever the mood asks for.
PHRASES = """
good adjective: great / good / lovely / brilliant / amazing / perfect / wonderful / pleasant
bad adjective: bad / awful / terrible / horrible / dreadful / dull / stressful / disappointing
good verb: loved / enjoyed / liked / adored / was happy with / was impressed by
bad verb: hated / disliked / regretted / dreaded / was fed up with / was annoyed by
good effect: made my day / made my evening / made me smile / cheered me up / put me in a good mood
bad effect: ruined my day / ruined my evening / made me cry / got me down / put me in a bad mood
good verdict: a real treat / a success / so much fun / a nice surprise / worth the effort
bad verdict: a real pain / a total mess / so much hassle / a nasty surprise / a waste of time
good feeling: happy / pleased / relaxed / proud / excited / cheerful
bad feeling: sad / upset / stressed / angry / worried / miserable
good cry: yay / woohoo / hooray / yesss / best day ever
bad cry: ugh / argh / sigh / nooo / worst day ever
very: really / so / sooo / just / quite / pretty
friend: mia / finn / nell / emma / pete / ian / olga / raj / bea / leo / tess / kofi
aside: the company / the walk home / my lunch / the music / the chat afterwards / the evening
aside: the cake / the rest of the day / the journey back / the crème brûlée / the email from {name}
name: Zoë / Sam / Amélie / Tom / Priya / José / Kate / Björn / Lucy / Dan / mum / grandad
day: today / this morning / last night / yesterday / on Monday / at the weekend / this afternoon
opener: ok so / well / right / so / haha / hi all / morning all / just saying / update / quick one
closer: off to bed now / back to work tomorrow / anyone else? / what are you up to tonight?
closer: more later / who else was there? / talk to you tomorrow / that is all / and now for some tea
closer: how was your day? / going to tell {name} about it / that was my {short day} / see you soon
closer: call me naïve but I did see it coming / a bit of déjà vu there / now where are my keys?
short day: Monday / Tuesday / Thursday / Friday / Sunday
tag: monday / weekend / life / fridaynight / justsaying / today
"""

# What a text says. {subject} and {object} stand for something that it has not named yet, {own} for
# the topic's own good or bad news, {clause} for a statement of the same mood, and {first} and
# {last} for one of the opposite mood and one of the mood that decides.
STATEMENTS = """
plain: {subject} was {adjective} / {subject} was {very} {adjective} / {subject} {effect}
plain: I {verb} {object} / I really {verb} {object} / {subject} was {verdict} / {own}
plain: I was {very} {feeling} about {object} / {subject} left me {feeling}
negated: {subject} was not {adjective} / {subject} was not that {adjective}
negated: {subject} was not {adjective} at all / {subject} was never {adjective}
negated: {subject} was not {verdict} / I never {verb} {object} / can't say I {verb} {object}
negated: I was not {feeling} about {object} / I was never {feeling} about {object}
double: {clause} and {clause} / {clause}, {clause}
contrast: {first} but {last} / {first}, but {last} / {first} but then {last}
contrast: {first} but in the end {last} / though {first}, {last} / {first}, {last} though
sarcasm: oh great, {own} / just perfect, {own} / {own}, how lovely
"""

# Topics: the tag with things (singular), then activities, small talk, good and bad news.
TOPICS = """
weather: the weather {day} / the forecast / this wind / the sky over town
  doing: walking in the rain / sitting in the park / watching the clouds
  talk: took my umbrella to work / they said twelve degrees / it is autumn after all
  good: the sun came out at last / not a cloud in the sky, it was warm and bright
  bad: it was cold and grey all day / the rain soaked me to the bone
trains: the train {day} / the 7.40 to town / my commute / the new timetable
  doing: taking the train with {name} / commuting {day} / changing trains twice
  talk: on the platform with {name} / sitting in the last carriage / two more stops to go
  good: the train was right on time / I got a seat by the window
  bad: the train was late again / I had to stand all the way
coffee: my coffee {day} / this café / the coffee at work / the new coffee machine
  doing: meeting {name} for coffee / trying the café on the corner / making my own coffee
  talk: second cup already / just put the kettle on / sitting in the café with {name}
  good: the coffee was hot and fresh / they gave me a free biscuit
  bad: the coffee was cold and bitter / they got my order wrong
exams: the exam {day} / my maths exam / the oral test / the last question
  doing: revising with {name} / sitting in the library / writing my essay
  talk: three exams this week / the results come on Friday / my desk is full of notes
  good: I passed the exam / I knew all the answers
  bad: I failed the exam / I ran out of time
phone: my new phone / this app / the update {day} / the phone shop
  doing: setting up my new phone / calling the help line / changing my number
  talk: copying my photos now / two years with the old one / typing this on my phone
  good: the battery lasted all day / they fixed my phone for free
  bad: the battery died again / I cracked the screen
football: the match {day} / the second half / our new keeper / this season
  doing: watching the match with {name} / playing five a side {day} / going to the game
  talk: listening on the radio / kick off was at three / we play again on Saturday
  good: we won in the last minute / our striker scored twice
  bad: we lost in the last minute / our striker missed twice
films: the film {day} / the ending / this series / the new cinema
  doing: going to the cinema with {name} / watching the whole series / seeing the film again
  talk: popcorn for two / it is on again tomorrow / front row seats {day}
  good: the story had me hooked / I laughed all the way through
  bad: the story was one big cliché / I nearly fell asleep halfway
family: my sister's visit / the family lunch / the party for grandma / my cousin's wedding
  doing: seeing the family {day} / babysitting for {name} / visiting grandma
  talk: there were twelve of us / mum took the photos / my cousin lives in Málaga now
  good: everyone got on so well / grandma is out of hospital
  bad: everyone argued at the table / grandma is back in hospital
sleep: my night / the new mattress / my nap {day} / this pillow
  doing: going to bed at nine / sleeping on the sofa / getting up at six
  talk: it is nearly midnight / set the alarm for seven / my fiancé is still up
  good: I slept like a baby / I woke up fresh and rested
  bad: I was awake half the night / I woke up with a sore back
work: the meeting {day} / my shift / the new job / this project
  doing: working with {name} / working from home / giving a talk {day}
  talk: in the office with {name} / two more days to go / my boss is called Renée
  good: I got a pay rise / my boss said thank you
  bad: I lost my job / my boss shouted at me
cooking: my soup {day} / the curry / the new recipe / this oven
  doing: cooking for {name} / baking bread {day} / making dinner
  talk: put a jalapeño in it / the recipe is from {name} / onions are on the list
  good: the dinner tasted delicious / everyone asked for seconds
  bad: the dinner was burnt / everyone left their plate half full
garden: the garden {day} / my vegetable patch / the flower show / this old shed
  doing: digging the garden with {name} / planting beans / mowing the lawn
  talk: the hedge is two metres high / bought three bags of soil / it is nearly June
  good: the roses are in bloom / the first tomatoes are ripe
  bad: the roses all died / the slugs ate the tomatoes
running: my run {day} / the half marathon / the gym / this training plan
  doing: running with {name} / going to the gym {day} / stretching on the floor
  talk: five miles on the plan / new shoes on / the race is in May
  good: I beat my best time / my legs felt light
  bad: I twisted my ankle / my legs felt heavy
dogs: the walk with the dog / our puppy / the vet {day} / the dog show
  doing: walking the dog {day} / taking the puppy to {name} / training our puppy
  talk: the dog is called Noël / he is nine weeks old / the lead is by the door
  good: the puppy fell asleep on my lap / the vet said he is healthy
  bad: the puppy chewed my shoes / the vet said he is ill
shopping: the market {day} / this jacket / my parcel / the shoe shop
  doing: shopping with {name} / buying a present for {name} / queueing at the till
  talk: the shop closes at eight / bread and milk are on the list / it came in a brown box
  good: it was half price / the jacket fits like a glove
  bad: they charged me twice / the jacket fell apart
music: the gig {day} / the new album / my guitar lesson / the support band
  doing: singing with {name} / seeing the band live / practising the guitar
  talk: doors open at seven / there are ten songs on it / standing near the stage
  good: the crowd sang every word / they played my favourite song
  bad: the sound was far too loud / they cancelled the encore
books: this book / the last chapter / the reading group {day} / the sequel
  doing: reading in bed / swapping books with {name} / reading the sequel
  talk: it has six hundred pages / on page ninety / borrowed it from {name}
  good: I could read it all over again / the plot was full of surprises
  bad: I gave up halfway through / the plot was full of holes
holiday: the hotel / our trip to the sea / the flight {day} / this beach
  doing: packing with {name} / flying {day} / driving along the coast
  talk: the passports are in the drawer / we leave on Tuesday / São Paulo next year
  good: they gave us the best room / the sea was warm and clear
  bad: they lost our luggage / the sea was cold and dirty
dentist: the dentist {day} / my check-up / the waiting room / the new doctor
  doing: going to the dentist {day} / waiting for the doctor / sitting next to {name}
  talk: the appointment was at ten / the next one is in March / read an old magazine
  good: my teeth are all fine / the pain is gone
  bad: I need two fillings / the pain is back
home: the new flat / our kitchen / the view / this street
  doing: moving house with {name} / painting the walls / cleaning the flat {day}
  talk: twenty boxes in the hall / it is on the third floor / the walls are blue now
  good: we got the keys / the neighbours brought us a cake
  bad: the roof is leaking / the neighbours kept us awake
school: my French lesson / the school play / the class {day} / our homework
  doing: learning French with {name} / teaching year seven / marking tests
  talk: the term ends on Friday / the word of the day is garçon / sat next to {name}
  good: I got full marks / the teacher was kind and patient
  bad: I got no marks at all / the teacher was rude and unfair
games: the new game / the last level / this puzzle / the quiz {day}
  doing: playing cards with {name} / playing online {day} / doing the crossword
  talk: level nine already / we were four players / the pub quiz is on Thursdays
  good: our team came first / I got the top score
  bad: our team came last / the game crashed and I lost it all
"""

# Variants and spellings of people in a hurry: what, by what, how often.
VARIANTS = (
    (r"\b(really|never) was\b", r"was \1", 1.0),
    (r"\b((?:this (?!morning|afternoon)|the new |my new )\w+) was\b", r"\1 is", 0.5),
    (r"\breally\b", "reallyyy", 0.06),
    (r"\breally\b", "realy", 0.04),
    (r"\bloved\b", "looooved", 0.06),
    (r"\bhated\b", "haaated", 0.06),
    (r"\btomorrow\b", "tommorow", 0.2),
    (r"\byou\b", "u", 0.2),
    (r"\bthe\b", "teh", 0.01),
    (r"\band\b", "&", 0.1),
    (r"\bcan't\b", "cant", 0.2),
)
# Longer than the 15 characters that a real handle may have, so these cannot be anybody's.
HANDLES = ("@made_up_friend_{}", "@no_such_person_{}")


def pick(rng: random.Random, options: Sequence[str]) -> str:
    """Choose one of the options; ``random()`` is the same in every version of Python."""
    return options[int(rng.random() * len(options))]


def read_table(text: str) -> dict[str, list[str]]:
    """Read lines "key: phrase / phrase"; the lines of one key add up."""
    table: dict[str, list[str]] = {}
    for line in text.strip().splitlines():
        key, _, phrases = line.strip().partition(": ")
        table.setdefault(key, []).extend(phrases.split(" / "))
    return table


def read_topics(text: str) -> list[dict[str, list[str]]]:
    """Read the topics: a first line with the tag and the things, then indented lines."""
    topics = []
    for block in re.split(r"\n(?=\S)", text.strip()):
        tag, _, rest = block.partition(": ")
        topics.append({"hashtag": [tag], **read_table("thing: " + rest)})
    return topics


class Writer:
    """Writes tweets of a wanted mood, "good" or "bad"."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.topics = read_topics(TOPICS)
        self.tables = {**read_table(PHRASES), **read_table(STATEMENTS)}
        self.topic = self.topics[0]
        self.named: set[str] = set()

    def chance(self, share: float) -> bool:
        """Return True in this share of the cases."""
        return self.rng.random() < share

    def expand(self, text: str, mood: str) -> str:
        """Fill in every {key} of the text, and those of what was filled in."""
        return re.sub(r"\{([a-z ]+)\}", lambda match: self.fill(match[1], mood), text)

    def fill(self, key: str, mood: str) -> str:
        """Choose a phrase for one {key}."""
        if key in {"subject", "object"}:
            return self.name_something(mood)
        if key in {"clause", "first", "last"}:
            wanted = OPPOSITE[mood] if key == "first" else mood
            return self.fill("negated" if self.chance(NEGATED_CLAUSES) else "plain", wanted)
        options = self.topic.get(mood if key == "own" else key)
        options = options or self.tables.get(f"{mood} {key}") or self.tables[key]
        mood = OPPOSITE[mood] if key == "negated" else mood  # "not bad" is good
        return self.expand(pick(self.rng, options), mood)

    def name_something(self, mood: str) -> str:
        """Choose a thing, an activity or something besides that the tweet has not named."""
        while True:
            kind = pick(self.rng, ("thing", "thing", "doing", "aside" if self.named else "thing"))
            phrase = pick(self.rng, self.topic.get(kind) or self.tables[kind])
            if phrase not in self.named:
                self.named.add(phrase)
                return self.expand(phrase, mood)

    def shape(self, mood: str) -> str:
        """Choose how the tweet states its mood; sarcasm is always bad news."""
        roll = self.rng.random() * sum(SHAPES.values())
        for name, weight in SHAPES.items():
            roll -= weight
            if roll < 0 and (name, mood) != ("sarcasm", "good"):
                return name
        return "plain"

    def tweet(self, mood: str) -> str:
        """Write one tweet."""
        self.topic = self.topics[int(self.rng.random() * len(self.topics))]
        self.named = set()
        shape = self.shape(mood)
        core = self.fill(shape, mood)
        if shape in {"plain", "double"} and self.chance(0.15):
            core = f"{self.fill('cry', mood)}, {core}"
        elif self.chance(0.25):
            core = f"{self.fill('opener', mood)}, {core}"
        sentences = [core]
        if self.chance(0.5):
            sentences.insert(0 if self.chance(0.5) else 1, self.fill("talk", mood))
        if self.chance(0.4):
            sentences.append(self.fill("closer", mood))
        text = self.punctuate(sentences)
        if self.chance(0.3):
            text = f"{pick(self.rng, HANDLES).format(self.fill('friend', mood))} {text}"
        if self.chance(0.25):
            text += f" #{self.fill('hashtag' if self.chance(0.7) else 'tag', mood)}"
        return text

    def punctuate(self, sentences: list[str]) -> str:
        """Join the sentences the way people type, in capitals and small letters or all small."""
        lower = self.chance(0.5)
        text = ""
        for sentence in sentences:
            end = pick(self.rng, (".", ".", "!", "!!", "...", " -" if lower else "."))
            line = sentence if sentence.endswith("?") else sentence + end
            text += " " + (line.lower() if lower else line[0].upper() + line[1:])
        for pattern, replacement, share in VARIANTS:
            if self.chance(share):
                text = re.sub(pattern, replacement, text)
        return text.strip().removesuffix(" -")


def make_texts(rng: random.Random, half: int) -> dict[str, list[str]]:
    """Write ``half`` texts for each label, noise included.

    The texts differ in their words, not only in case, punctuation, mentions or hashtags.
    """
    writer = Writer(rng)
    seen: set[str] = set()
    texts: dict[str, list[str]] = {}
    flipped = round(half * LABEL_NOISE)
    for label in ("bad", "good"):
        rows: list[str] = []
        while len(rows) < half:
            text = writer.tweet(OPPOSITE[label] if len(rows) < flipped else label)
            words = " ".join(re.findall(r"(?<![\w@#])\w+", text.lower()))
            if words not in seen and MIN_WORDS <= len(text.split()) <= MAX_WORDS:
                seen.add(words)
                rows.append(text)
        texts[label] = sorted(rows, key=lambda _: rng.random())  # spreads the noise
    return texts


def write_sample(path: Path, rows: int, seed: int) -> None:
    """Write ``rows`` rows, half of them negative, to ``path``."""
    texts = make_texts(random.Random(seed), rows // 2)
    lines = [(LABELS[mood], text) for mood in ("bad", "good") for text in texts[mood]]
    with path.open("w", encoding="iso-8859-1", newline="") as file:
        out = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        for number, (label, text) in enumerate(lines, start=1):
            out.writerow((label, number, "", "NO_QUERY", "", text))


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description="Write the made-up sample tweets.")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, metavar="FILE")
    parser.add_argument("--rows", type=int, default=3000, help="an even number (default 3000)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.rows < 2 or args.rows % 2:
        parser.error("--rows must be an even number, 2 or more")
    write_sample(args.output, args.rows, args.seed)
    print(f"{args.rows} rows written to {args.output}")


if __name__ == "__main__":
    main()

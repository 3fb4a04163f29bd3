"""Word lists that the other parts of the corpus draw from."""

import random

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack", "Kate",
    "Leo", "Mia", "Noah", "Olivia", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wendy", "Zoe",
    "Alice", "Bob", "Carol", "Daniel", "Eva", "Frank", "Hannah", "Ivan", "Julia", "Karl", "Laura",
    "Max", "Nina", "Oscar", "Peter", "Rachel", "Simon", "Tom", "Maria", "John", "Sarah", "Ali",
    "Omar", "Lena", "Ravi", "Yuki", "Chen", "Priya", "Luis", "Marco", "Sofia", "Alex", "Jane",
    "Mary", "Adam", "Lucy", "Mark", "Ada",
)  # fmt: skip

PET_NAMES = (
    "Milo", "Luna", "Pip", "Daisy", "Rusty", "Coco", "Bella", "Finn", "Poppy", "Toby", "Ruby",
    "Sunny", "Lily", "Max", "Nori", "Tilly", "Otto", "Bruno", "Penny", "Hugo",
)  # fmt: skip

ANIMALS = (
    "cat", "dog", "mouse", "fox", "rabbit", "bear", "bird", "frog", "horse", "cow", "pig", "duck",
    "owl", "lion", "tiger", "wolf", "turtle", "snail", "bee", "ant", "elephant", "monkey",
    "penguin", "whale", "fish", "sheep", "goat", "hen", "squirrel", "hedgehog", "kitten", "puppy",
    "dragon", "unicorn", "butterfly", "spider", "crab", "dolphin", "giraffe", "zebra", "camel",
    "deer", "parrot", "snake", "kangaroo", "panda", "koala", "crow", "donkey", "swan", "beaver",
    "otter", "lizard", "dinosaur",
)  # fmt: skip
PEOPLE = (
    "girl", "boy", "king", "queen", "princess", "prince", "farmer", "baker", "sailor", "knight",
    "wizard", "witch", "teacher", "doctor", "pirate", "painter", "gardener", "fisherman", "child",
    "student", "programmer", "grandmother", "giant", "astronaut", "singer", "dancer", "nurse",
    "hunter", "monk",
)  # fmt: skip
THINGS = (
    "robot", "tree", "star", "cloud", "boat", "train", "toy", "flower", "snowman", "car",
    "computer", "ghost", "moon", "river", "teapot", "balloon", "kite", "stone", "lamp", "clock",
    "doll", "plane", "monster", "alien", "fairy", "chair", "book", "pencil", "leaf", "ship",
    "token", "model", "server",
)  # fmt: skip
SUBJECTS = ANIMALS + PEOPLE + THINGS

TREASURES = (
    "ball", "hat", "key", "book", "red scarf", "ring", "map", "kite", "bell", "drum", "shoe",
    "flute", "blue cup", "coat", "cake", "song book", "little box", "lantern", "toy boat", "basket",
)  # fmt: skip
PLACES = (
    "in a small village", "near a big forest", "by the sea", "on a green hill", "in a quiet town",
    "next to a river", "in an old house", "in a garden", "under a tall tree",
    "at the edge of a lake", "in a busy city", "on a farm", "in a little valley", "behind a mill",
)  # fmt: skip

COLORS = (
    "red", "blue", "green", "yellow", "black", "white", "orange", "purple", "pink", "brown", "gray",
)  # fmt: skip
FOODS = (
    "pizza", "soup", "bread", "rice", "pasta", "salad", "cake", "apple pie", "noodles", "cheese",
    "fish", "curry", "tacos", "sushi", "pancakes", "burger", "omelette", "stew",
)  # fmt: skip
FRUITS = ("apple", "banana", "cherry", "grape", "lemon", "mango", "orange", "peach", "pear", "plum")
JOBS = (
    "teacher", "doctor", "engineer", "baker", "farmer", "nurse", "painter", "writer", "pilot",
    "lawyer", "driver", "cook", "scientist", "singer", "designer", "programmer",
)  # fmt: skip
CITIES = (
    "Paris", "London", "Berlin", "Rome", "Madrid", "Tokyo", "Vienna", "Prague", "Oslo", "Lisbon",
    "Athens", "Dublin", "Cairo", "Lima", "Seoul", "Boston", "New York", "Chicago", "Munich",
    "Milan", "Sydney", "Toronto", "Mumbai", "Shanghai", "Barcelona", "Hamburg", "San Francisco",
    "Los Angeles", "Istanbul", "Zurich", "Geneva", "Lyon", "Seattle", "Miami", "Warsaw", "Helsinki",
    "Stockholm", "Beijing", "Delhi", "Nairobi", "Amsterdam", "Brussels", "Copenhagen", "Budapest",
    "Kyoto", "Osaka", "Dallas", "Denver",
)  # fmt: skip
TOPICS = (
    "music", "science", "history", "sports", "space", "art", "football", "cooking", "travel",
    "health", "books", "movies", "nature", "technology", "politics", "business", "gardening",
    "chess", "physics", "philosophy", "economics", "biology", "chemistry", "cars", "fashion",
    "dinosaurs", "volcanoes", "quantum physics", "black holes", "machine learning",
    "neural networks", "the Roman Empire", "love", "evolution", "gravity", "photosynthesis",
    "the French Revolution", "the internet", "blockchain", "climate change", "relativity",
    "the human brain", "Shakespeare", "poetry", "tennis", "basketball",
)  # fmt: skip
LANGUAGES = (
    "French", "German", "Spanish", "Italian", "Chinese", "Japanese", "Russian", "Arabic", "Dutch",
)  # fmt: skip
ROOMS = ("kitchen", "bedroom", "living room", "bathroom", "office", "garage", "hall", "garden")
SONGS = (
    "Yesterday", "Imagine", "Hey Jude", "Let It Be", "Moon River", "Summertime", "Yellow Submarine",
)  # fmt: skip
WORDS = (
    "alpha", "bridge", "candle", "desert", "engine", "forest", "glass", "harbor", "island",
    "jacket", "kettle", "ladder", "market", "needle", "ocean", "paper", "quartz", "rocket",
    "silver", "table", "umbrella", "valley", "window", "yellow", "zero", "autumn", "butter",
    "cotton", "dinner", "eleven", "flight", "guitar", "hammer", "insect", "jungle", "kernel",
    "lemon", "mirror", "number", "orchid", "pocket", "radio", "shadow", "ticket", "velvet",
    "winter", "object", "planet", "signal", "thunder",
)  # fmt: skip

SMALL_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
)  # fmt: skip


def joined(items: list[str], *, last: str = "and") -> str:
    """Return "a", "a and b" or "a, b and c"."""
    if len(items) == 1:
        return items[0]
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def with_article(noun: str) -> str:
    """Return the noun after "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith('uni') else 'a'} {noun}"


def invented_word(rng: random.Random) -> str:
    """Make up a word of two or three syllables: what can only be copied, not remembered."""
    syllables = range(rng.randint(2, 3))
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in syllables)

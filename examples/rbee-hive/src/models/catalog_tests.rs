use super::*;

fn catalog(files: &[&str], aliases: &[(&str, &str)]) -> (tempfile::TempDir, Catalog) {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"12345").unwrap();
    }
    let aliases = aliases
        .iter()
        .map(|&(alias, target)| (alias.into(), target.into()));
    let catalog = Catalog::new(
        folder.path().to_owned(),
        aliases.collect(),
        vec!["gguf".to_owned()],
    );
    (folder, catalog.unwrap())
}

fn refs(catalog: &Catalog) -> Vec<String> {
    let models = catalog.models().into_iter();
    models.map(|model| model.model_ref).collect()
}

#[test]
fn models_are_found_in_folders_and_named_by_their_file() {
    let (_folder, catalog) = catalog(
        &[
            "SmolLM2.gguf",
            "a/b/x.gguf",
            "a/b/c/d/deep.gguf",
            "notes.txt",
        ],
        &[],
    );
    assert_eq!(refs(&catalog), ["file:SmolLM2.gguf", "file:a/b/x.gguf"]);
    let found = catalog.find("smollm2", "").unwrap();
    assert_eq!(found.model_ref, "file:SmolLM2.gguf");
    assert_eq!(found.aliases, ["smollm2"]);
}

#[test]
fn a_hugging_face_file_keeps_its_reference() {
    let files = ["hf/org/repo/m-Q8_0.gguf", "hf/org/repo/m-Q4_K_M.gguf"];
    let (_folder, catalog) = catalog(&files, &[]);
    let find = |name: &str| catalog.find(name, "").map(|model| model.model_ref);
    assert_eq!(
        find("hf:org/repo/m-Q8_0.gguf").unwrap(),
        "hf:org/repo/m-Q8_0.gguf"
    );
    assert_eq!(find("hf:org/repo").unwrap(), "hf:org/repo/m-Q4_K_M.gguf");
    assert_eq!(find("org/repo").unwrap(), "hf:org/repo/m-Q4_K_M.gguf");
    let pinned = "hf:org/repo@main::file=m-Q8_0.gguf";
    assert_eq!(find(pinned).unwrap(), "hf:org/repo/m-Q8_0.gguf");
    assert_eq!(find("hf:org/other").unwrap_err().code, "MODEL_NOT_FOUND");
}

#[test]
fn a_split_model_is_one_and_only_when_it_is_whole() {
    let whole = ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"];
    let (_folder, catalog) = catalog(&[&whole[..], &["half-00001-of-00002.gguf"]].concat(), &[]);
    let models = catalog.models();
    assert_eq!(models.len(), 1);
    assert_eq!(models[0].size_bytes, 10);
    assert_eq!(models[0].aliases, ["big"]);
}

#[test]
fn an_alias_wins_over_a_file_name_and_may_leave_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().join("far.gguf");
    fs::write(&path, b"1").unwrap();
    let target = format!("file:{}", path.display());
    let (_folder, catalog) = catalog(
        &["x.gguf", "y.gguf"],
        &[("x", "file:y.gguf"), ("far", &target)],
    );
    assert_eq!(catalog.find("x", "").unwrap().model_ref, "file:y.gguf");
    assert_eq!(catalog.find("far", "").unwrap().path, path);
    assert_eq!(catalog.find(&target, "").unwrap().path, path);
}

#[test]
fn nothing_outside_of_the_folder_can_be_asked_for() {
    let (folder, catalog) = catalog(&["x.gguf"], &[]);
    let code = |model_ref: &str, path: &str| catalog.find(model_ref, path).unwrap_err().code;
    for bad in [
        "file:../x.gguf",
        "file:a/../../x",
        "hf:..",
        "file:/etc/passwd",
        "",
        "a\nb",
    ] {
        assert_eq!(code(bad, ""), "INVALID_REQUEST", "{bad:?}");
    }
    assert_eq!(code("m", "/etc/passwd"), "INVALID_REQUEST");
    assert_eq!(code("file:nope.gguf", ""), "MODEL_NOT_FOUND");
    let inside = folder.path().join("x.gguf");
    assert!(catalog.find("whatever", inside.to_str().unwrap()).is_ok());
    assert!(catalog.find("file:./x.gguf", "").is_ok());
}

#[test]
fn a_model_in_a_linked_folder_is_not_deleted_and_of_a_linked_file_only_the_link_is() {
    let elsewhere = tempfile::tempdir().unwrap();
    let [kept, pointed_to] = ["a/kept.gguf", "b/other.gguf"].map(|name| {
        let path = elsewhere.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"12345").unwrap();
        path
    });
    let (folder, catalog) = catalog(&["own.gguf"], &[]);
    let link = |to: &Path, name: &str| {
        std::os::unix::fs::symlink(to, folder.path().join(name)).unwrap();
    };
    link(&elsewhere.path().join("a"), "linked");
    link(&pointed_to, "link.gguf");
    link(folder.path(), "itself");
    let remove = |name: &str| catalog.remove(&catalog.find(name, "").unwrap());
    let listed = catalog.models().into_iter();
    let listed: Vec<_> = listed
        .map(|model| (model.model_ref, model.removable))
        .collect();
    let expected = [
        ("file:link.gguf", false),
        ("file:linked/kept.gguf", false),
        ("file:own.gguf", true),
    ];
    for (model_ref, removable) in expected {
        let model = (model_ref.to_owned(), removable);
        assert!(listed.contains(&model), "{model:?} in {listed:?}");
    }
    let error = remove("file:linked/kept.gguf").unwrap_err();
    assert_eq!((error.status.as_u16(), &*error.code), (409, "CONFLICT"));
    for path in [
        folder.path().join("linked"),
        fs::canonicalize(&kept).unwrap(),
    ] {
        let path = path.display().to_string();
        assert!(error.message.contains(&path), "{}", error.message);
    }
    assert_eq!(
        remove("file:link.gguf").unwrap(),
        0,
        "the link's target stays"
    );
    assert!(kept.exists() && pointed_to.exists());
    assert!(!folder.path().join("link.gguf").exists());
    assert_eq!(remove("file:own.gguf").unwrap(), 5);
    assert!(!folder.path().join("own.gguf").exists());
}

#[test]
fn a_file_that_an_alias_names_elsewhere_or_that_has_another_name_gives_no_room() {
    let elsewhere = tempfile::tempdir().unwrap();
    let far = elsewhere.path().join("far.gguf");
    fs::write(&far, b"12345").unwrap();
    let alias = format!("file:{}", far.display());
    let (folder, catalog) = catalog(&["one.gguf"], &[("far", &alias)]);
    let (one, two) = (
        folder.path().join("one.gguf"),
        elsewhere.path().join("two.gguf"),
    );
    fs::hard_link(&one, &two).unwrap();
    assert!(catalog.models().iter().all(|model| !model.removable));
    let remove = |name: &str| catalog.remove(&catalog.find(name, "").unwrap());
    let error = remove("far").unwrap_err();
    assert!(error.message.contains("alias"), "{}", error.message);
    assert_eq!(remove("file:one.gguf").unwrap(), 0);
    assert!(far.exists() && two.exists() && !one.exists());
}

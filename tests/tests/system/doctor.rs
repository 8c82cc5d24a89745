//! `pipedoc doctor`, as its users run it.

use std::fs;
use std::path::Path;

use pipedoc_tests::bed::pipedoc;

fn doctor(data: &Path, more: &[&str]) -> (Option<i32>, String) {
    let arguments = ["doctor", "--data", data.to_str().unwrap()];
    let output = pipedoc::command(arguments).args(more).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn what_is_not_pipedocs_is_refused_and_left_as_it_is() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("log.db");
    rusqlite::Connection::open(&file).unwrap().execute_batch("CREATE TABLE theirs (a)").unwrap();
    let before = fs::read(&file).unwrap();
    for more in [&[][..], &["--compact"], &["--output", "json"]] {
        let (code, said) = doctor(data.path(), more);
        assert_eq!(code, Some(2), "{more:?}: {said}");
        assert!(said.contains("log.db") && said.contains("not PipeDoc's"), "{said}");
    }
    assert_eq!(fs::read(&file).unwrap(), before, "it was changed");
    fs::write(&file, "").unwrap();
    assert_eq!(doctor(data.path(), &["--compact"]).0, Some(2), "an empty file holds nothing to look at");
    assert_eq!(doctor(&data.path().join("nowhere"), &[]).0, Some(2));
}

#[test]
fn files_of_a_run_are_sound_and_a_damaged_one_is_told() {
    let place = tempfile::tempdir().unwrap();
    let (input, out) = (place.path().join("in"), place.path().join("out"));
    fs::create_dir(&input).unwrap();
    for n in 0..50 {
        fs::write(input.join(format!("f{n}.txt")), format!("text {n} ").repeat(50)).unwrap();
    }
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/library");
    let run = ["run", example.to_str().unwrap(), "--in", input.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let ran = pipedoc::command(run).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let data = out.join(".pipedoc");
    let (code, said) = doctor(&data, &["--compact", "--output", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&told[0]["sound"], &told[0]["holds"]), (&true.into(), &"log".into()), "{said}");
    assert!(told[0]["contents"]["records"].as_i64().unwrap() >= 150, "{said}");

    let file = data.join("log.db");
    let mut bytes = fs::read(&file).unwrap();
    let (from, to) = (bytes.len() / 3, bytes.len() / 2);
    bytes[from..to].fill(0x5a);
    fs::write(&file, bytes).unwrap();
    let (code, said) = doctor(&data, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("DAMAGED") && said.contains("sent anew"), "{said}");
}

import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

// The offline build, ci/chain.py, has the same values; tests/test_android.py compares them.
android {
    namespace = "org.kdlite.demo"
    compileSdk = 35

    defaultConfig {
        applicationId = "org.kdlite.demo"
        minSdk = 26
        targetSdk = 35
        versionCode = 1
        versionName = "1.0"
        ndk {
            abiFilters += listOf("arm64-v8a", "armeabi-v7a", "x86_64")
        }
    }
    buildTypes {
        release {
            isMinifyEnabled = true
            isShrinkResources = false
            proguardFiles("proguard-rules.pro")
            // For trying it out: a release of your own needs a key of your own.
            signingConfig = signingConfigs.getByName("debug")
        }
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
    androidResources {
        // Mapped from the APK as it lies.
        noCompress += "tflite"
    }
    packaging {
        // Half the size to download; Android unpacks them.
        jniLibs.useLegacyPackaging = true
    }
}

kotlin {
    compilerOptions {
        jvmTarget = JvmTarget.JVM_1_8
    }
}

dependencies {
    if (providers.gradleProperty("tfliteRuntime").orNull == "litert") {
        implementation(libs.litert)
    } else {
        implementation(libs.tensorflow.lite)
    }
    implementation(libs.tensorflow.lite.metadata)
    // The tests run by ci/chain.py, which brings a native library for this computer; here they compile.
    testImplementation(libs.junit)
    testImplementation(libs.robolectric)
}

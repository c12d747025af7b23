package org.kdlite.demo.ui

import android.content.Context
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Paint
import android.graphics.PointF
import android.graphics.Rect
import android.os.Bundle
import android.os.Parcelable
import android.util.AttributeSet
import android.view.MotionEvent
import android.view.View
import java.io.ByteArrayOutputStream
import org.kdlite.demo.R
import org.kdlite.demo.core.Pixels

/**
 * A black square to draw on in white, as Fashion-MNIST and MNIST are.
 *
 * It keeps what was drawn as two images, not as strokes, so that a long drawing costs no more than a short one.
 */
class DrawView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    /** Called when a stroke has grown or all was cleared. */
    var onChange: () -> Unit = {}

    /** For the screen, of any size, and for the model. */
    private val large = Drawing(SCREEN_SIDE)
    private val small = Drawing(MODEL_SIDE)

    /** Where the finger was last, in 0 to 1; null between strokes. */
    private var last: PointF? = null
    private val smooth = Paint(Paint.FILTER_BITMAP_FLAG)
    private val edge = Paint().apply {
        color = context.getColor(R.color.frame)
        style = Paint.Style.STROKE
        strokeWidth = 2 * resources.displayMetrics.density
    }

    var isBlank = true
        private set

    fun clear() {
        for (drawing in listOf(large, small)) drawing.clear()
        last = null
        isBlank = true
        invalidate()
        onChange()
    }

    /** What was drawn. */
    fun pixels(): Pixels = small.bitmap.toPixels()

    override fun onDraw(canvas: Canvas) {
        canvas.drawBitmap(large.bitmap, null, Rect(0, 0, width, height), smooth)
        // Where the screen is dark too, one must see where the canvas ends.
        val half = edge.strokeWidth / 2
        canvas.drawRect(half, half, width - half, height - half, edge)
    }

    override fun onTouchEvent(event: MotionEvent): Boolean {
        when (event.actionMasked) {
            MotionEvent.ACTION_DOWN -> {
                // The page around would scroll.
                parent.requestDisallowInterceptTouchEvent(true)
                add(event.x, event.y)
            }
            MotionEvent.ACTION_MOVE -> {
                for (i in 0 until event.historySize) add(event.getHistoricalX(i), event.getHistoricalY(i))
                add(event.x, event.y)
            }
            MotionEvent.ACTION_UP -> {
                add(event.x, event.y)
                last = null
                performClick()
            }
            MotionEvent.ACTION_CANCEL -> last = null
            else -> return super.onTouchEvent(event)
        }
        invalidate()
        onChange()
        return true
    }

    override fun performClick(): Boolean = super.performClick()

    override fun onSaveInstanceState(): Parcelable = Bundle().apply {
        putParcelable(OUTER, super.onSaveInstanceState())
        if (isBlank) return@apply
        putByteArray(LARGE, large.toPng())
        putByteArray(SMALL, small.toPng())
    }

    override fun onRestoreInstanceState(state: Parcelable?) {
        val kept = state as Bundle
        @Suppress("DEPRECATION")
        super.onRestoreInstanceState(kept.getParcelable(OUTER))
        val pngs = listOf(LARGE, SMALL).map { kept.getByteArray(it) ?: return }
        large.show(pngs[0])
        small.show(pngs[1])
        isBlank = false
    }

    private fun add(x: Float, y: Float) {
        val point = PointF((x / width).coerceIn(0f, 1f), (y / height).coerceIn(0f, 1f))
        for (drawing in listOf(large, small)) drawing.line(last ?: point, point)
        last = point
        isBlank = false
    }

    /** White lines on a black square of [side] pixels. */
    private class Drawing(private val side: Int) {
        val bitmap: Bitmap = Bitmap.createBitmap(side, side, Bitmap.Config.ARGB_8888)
        private val canvas = Canvas(bitmap)
        private val paint = Paint(Paint.ANTI_ALIAS_FLAG).apply {
            color = Color.WHITE
            style = Paint.Style.STROKE
            strokeCap = Paint.Cap.ROUND
            strokeWidth = side / 14f
        }

        init {
            clear()
        }

        fun clear() = canvas.drawColor(Color.BLACK)

        fun line(from: PointF, to: PointF) = canvas.drawLine(from.x * side, from.y * side, to.x * side, to.y * side, paint)

        fun toPng(): ByteArray =
            ByteArrayOutputStream().also { bitmap.compress(Bitmap.CompressFormat.PNG, 100, it) }.toByteArray()

        fun show(png: ByteArray) {
            BitmapFactory.decodeByteArray(png, 0, png.size)?.let { canvas.drawBitmap(it, 0f, 0f, null) }
        }
    }

    private companion object {
        const val SCREEN_SIDE = 448
        const val MODEL_SIDE = 112
        const val OUTER = "outer"
        const val LARGE = "large"
        const val SMALL = "small"
    }
}
